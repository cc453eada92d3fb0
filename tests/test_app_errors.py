"""What applications raise is logged once as what it means: their failure, or the client's leaving."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
import trio

from tests.helpers import logged_errors
from trio_ws_server.app_errors import explain_if_asyncio, report, split
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ClientDisconnected, ConnectionClosedError, ConnectionClosedOK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HINT = "This server runs applications on Trio"


class WebSocketDisconnect(Exception):
    """As Starlette and Litestar have it."""


class WebSocketDisconnected(RuntimeError):
    """As Starlette has it."""


class ClientDisconnect(Exception):
    """As Starlette has it."""


class ClientDisconnectedError(Exception):
    """As Quart has it."""


LEAVINGS = [
    ClientDisconnected("the client has disconnected"),
    ConnectionClosedOK(Close(1000), Close(1000)),
    ConnectionClosedError(None, None),
    WebSocketDisconnect(1001),
    WebSocketDisconnected("once a close message has been sent"),
    ClientDisconnect(),
    ClientDisconnectedError(),
    ExceptionGroup("two tasks", [WebSocketDisconnect(1001), ExceptionGroup("", [ClientDisconnect()])]),
]


def test_a_failure_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="application") as caught:
        raise ValueError("of the application")
    assert report(caught.value, "192.0.2.1:1 GET /", client_gone=False)
    [error] = logged_errors(caplog)
    assert error.startswith("192.0.2.1:1 GET /: exception in the application\nTraceback ")
    assert error.endswith("ValueError: of the application")


@pytest.mark.parametrize("exception", LEAVINGS, ids=repr)
def test_that_the_client_has_gone_is_no_failure(
    exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert not report(exception, "192.0.2.1:1 GET /", client_gone=True)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == f"192.0.2.1:1 GET /: the client disconnected: {exception!r}"


@pytest.mark.parametrize("exception", LEAVINGS, ids=repr)
def test_a_disconnect_of_someone_else_is_a_failure(
    exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert report(exception, "192.0.2.1:1 GET /", client_gone=False)
    assert len(logged_errors(caplog)) == 1


@pytest.mark.parametrize(
    "exception",
    [ValueError(), OSError(), ExceptionGroup("two tasks", [WebSocketDisconnect(1001), ValueError()])],
    ids=repr,
)
def test_any_other_exception_is_a_failure_though_the_client_has_gone(
    exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert report(exception, "192.0.2.1:1 GET /", client_gone=True)
    assert len(logged_errors(caplog)) == 1


async def wait_for_a_future() -> None:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


async def use_a_task_group() -> None:
    async with asyncio.TaskGroup():
        pass


async def use_a_timeout() -> None:
    async with asyncio.timeout(1):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "use",
    [
        lambda: asyncio.sleep(1),
        lambda: asyncio.sleep(0),
        lambda: asyncio.to_thread(print),
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.Queue[None]().get(),
        lambda: asyncio.Event().wait(),
        wait_for_a_future,
        use_a_task_group,
        use_a_timeout,
    ],
)
async def test_a_failure_for_want_of_asyncio_is_explained(
    use: Callable[[], Awaitable[object]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((RuntimeError, TypeError, AttributeError)) as caught:
        await use()
    assert report(caught.value, "192.0.2.1:1 GET /", client_gone=False)
    failure, hint = logged_errors(caplog)
    assert "exception in the application\n" in failure
    assert hint.startswith(HINT)


NO_LOOP = RuntimeError("no running event loop")


def failure(*, cause: BaseException | None = None, context: BaseException | None = None) -> Exception:
    """Return what a framework raises from a cause, or while it handles another exception."""
    exception = ValueError("the framework's")
    exception.__context__ = context
    if cause is not None:
        exception.__cause__ = cause
    return exception


@pytest.mark.parametrize(
    "exception",
    [
        failure(cause=NO_LOOP),
        failure(context=NO_LOOP),
        failure(cause=failure(context=NO_LOOP)),
        ExceptionGroup("two tasks", [ValueError(), ExceptionGroup("one", [NO_LOOP])]),
        failure(cause=ExceptionGroup("one", [NO_LOOP])),
    ],
    ids=repr,
)
def test_the_want_of_asyncio_is_found_behind_other_exceptions(
    exception: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    explain_if_asyncio(exception)
    assert [error.startswith(HINT) for error in logged_errors(caplog)] == [True]


def test_an_exception_that_the_application_dealt_with_is_not_held_against_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exception = failure(context=NO_LOOP)
    exception.__suppress_context__ = True  # raise … from None
    explain_if_asyncio(exception)
    assert logged_errors(caplog) == []


def test_an_exception_raised_from_itself_is_reported_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    exception = ValueError("of itself")
    exception.__cause__ = exception
    assert report(exception, "192.0.2.1:1 GET /", client_gone=False)
    assert len(logged_errors(caplog)) == 1


def test_an_exception_that_cannot_be_written_is_reported_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise NotImplementedError

    assert report(Unspeakable(), "192.0.2.1:1 GET /", client_gone=False)
    [error] = logged_errors(caplog)
    assert "Unspeakable" in error


async def test_only_cancellation_passes_through_a_group_that_holds_a_failure_too() -> None:
    raised: BaseException | None = None
    with trio.CancelScope() as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                raise asyncio.CancelledError
        except BaseExceptionGroup as group:
            raised, passed = split(group)
            assert passed is not None
            raise passed from None
    assert scope.cancelled_caught
    assert isinstance(raised, BaseExceptionGroup)
    assert [type(exception) for exception in raised.exceptions] == [asyncio.CancelledError]


def test_ctrl_c_passes() -> None:
    interrupt = KeyboardInterrupt()
    assert split(interrupt) == (None, interrupt)


@pytest.mark.parametrize("own", [ValueError(), SystemExit(1), asyncio.CancelledError()])
def test_everything_else_is_the_applications_own(own: BaseException) -> None:
    assert split(own) == (own, None)
