"""The lifespan of an ASGI application: started before, told to stop after, and never in the way."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.helpers import logged_errors
from trio_ws_server.asgi.lifespan import run_lifespan
from trio_ws_server.errors import InvalidEvent, LifespanError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.asgi.lifespan import LifespanMode

    App = Callable[[Any, Any, Any], Awaitable[None]]

STARTUP = {"type": "lifespan.startup"}
STARTED = {"type": "lifespan.startup.complete"}
START_FAILED = {"type": "lifespan.startup.failed"}
SHUTDOWN = {"type": "lifespan.shutdown"}
SHUT_DOWN = {"type": "lifespan.shutdown.complete"}
SHUTDOWN_FAILED = {"type": "lifespan.shutdown.failed"}


class Failure(Exception):
    """What an application raises."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Do as the specification's example does."""
    assert await receive() == STARTUP
    await send(STARTED)
    assert await receive() == SHUTDOWN
    await send(SHUT_DOWN)


# Startup.


async def test_startup_is_waited_for() -> None:
    told, go_on, entered = trio.Event(), trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == STARTUP
        told.set()
        await go_on.wait()
        await send(STARTED)

    async def serve() -> None:
        async with run_lifespan(app, "auto"):
            entered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await told.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not entered.is_set()
        go_on.set()
    assert entered.is_set()


async def test_the_scope_tells_the_versions_and_has_an_empty_state() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append({**scope, "state": dict(scope["state"])})
        await application(scope, receive, send)

    async with run_lifespan(app, "auto"):
        pass
    assert scopes == [{"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}]


async def test_what_the_application_puts_into_its_state_is_there_for_its_requests() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["pool"] = "a pool"
        await application(scope, receive, send)

    async with run_lifespan(app, "auto") as state:
        assert state == {"pool": "a pool"}


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise Failure("only http is known here")


async def raises_at_startup(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise Failure


async def returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


async def returns_at_startup(scope: Any, receive: Any, send: Any) -> None:
    await receive()


@pytest.mark.parametrize("app", [raises_at_once, raises_at_startup, returns_at_once, returns_at_startup])
async def test_an_application_without_lifespan_is_served_all_the_same(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_lifespan(app, "auto") as state:
        assert state is None
    assert logged_errors(caplog) == []


@pytest.mark.parametrize(
    ("app", "how"),
    [
        (raises_at_once, "raised Failure('only http is known here')"),
        (raises_at_startup, "raised Failure()"),
        (returns_at_once, "returned"),
        (returns_at_startup, "returned"),
    ],
)
async def test_an_application_without_the_lifespan_that_was_demanded_is_not_served(
    app: App, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LifespanError, match=re.escape(how)):
        async with run_lifespan(app, "on"):
            pytest.fail("it was served")
    [error] = logged_errors(caplog)
    assert error.startswith(f"Lifespan: the application {how} before it answered lifespan.startup")
    assert ("raise Failure" in error) == ("raised" in how)


async def test_an_application_that_has_a_lifespan_has_it_when_it_is_demanded() -> None:
    async with run_lifespan(application, "on") as state:
        assert state == {}


async def test_lifespan_can_be_turned_off() -> None:
    called = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal called
        called = True

    async with run_lifespan(app, "off") as state:
        await trio.testing.wait_all_tasks_blocked()
        assert state is None
    assert not called


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({**START_FAILED, "message": "no database\nat all"}, "no database\nat all"),
        (START_FAILED, "lifespan.startup.failed, without a message"),
        ({**START_FAILED, "message": None}, "lifespan.startup.failed, without a message"),
        ({**START_FAILED, "message": ""}, "lifespan.startup.failed, without a message"),
    ],
)
@pytest.mark.parametrize("then_raise", [False, True])
@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_an_application_whose_startup_failed_is_not_served_and_its_message_told(
    event: Any, message: str, then_raise: bool, mode: LifespanMode, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(event)
        if then_raise:  # as Starlette does
            raise Failure

    with pytest.raises(LifespanError) as caught:
        async with run_lifespan(app, mode):
            pytest.fail("it was served")
    assert str(caught.value) == message
    assert logged_errors(caplog) == []


async def test_a_startup_that_is_never_answered_can_be_cancelled() -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            ended.append("app")

    with trio.CancelScope() as cancel_scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def serve() -> None:
                async with run_lifespan(app, "auto"):
                    pytest.fail("it was served")

            await trio.testing.wait_all_tasks_blocked()
            cancel_scope.cancel()
    assert ended == ["app"]


async def test_a_startup_that_fails_for_want_of_asyncio_is_explained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise RuntimeError("no running event loop")
        except RuntimeError as exc:
            await send({**START_FAILED, "message": str(exc)})
            raise

    with pytest.raises(LifespanError):
        async with run_lifespan(app, "auto"):
            pytest.fail("it was served")
    [hint] = logged_errors(caplog)
    assert hint.startswith("This server runs applications on Trio")


# While it runs.


async def test_an_exception_while_running_is_logged_once_and_disturbs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["a"] = 1
        await send(STARTED)
        await go_on.wait()
        raise Failure("of a background task")

    async with run_lifespan(app, "auto") as state:
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert state == {"a": 1}
    [error] = logged_errors(caplog)
    assert error.startswith("Lifespan: the application raised Failure('of a background task')\nTraceback")


async def test_returning_while_running_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)

    async with run_lifespan(app, "auto") as state:
        await trio.testing.wait_all_tasks_blocked()
        assert state == {}
    assert logged_errors(caplog) == []


async def test_an_exception_of_the_server_comes_out_as_it_is_and_ends_the_application() -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)
        try:
            await trio.sleep_forever()
        finally:
            ended.append("app")

    with pytest.raises(Failure):
        async with run_lifespan(app, "auto"):
            raise Failure
    assert ended == ["app"]


# Shutdown.


async def test_shutdown_is_told_at_the_end_and_waited_for() -> None:
    order = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)
        await receive()
        order.append((await receive())["type"])
        await trio.testing.wait_all_tasks_blocked()
        order.append("application has shut down")
        await send(SHUT_DOWN)

    async with run_lifespan(app, "auto"):
        await trio.testing.wait_all_tasks_blocked()
        order.append("last connection gone")
    assert order == ["last connection gone", "lifespan.shutdown", "application has shut down"]


async def test_an_application_that_has_shut_down_is_not_waited_for_any_longer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await application(scope, receive, send)
        await trio.sleep_forever()

    async with run_lifespan(app, "auto"):
        pass


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({**SHUTDOWN_FAILED, "message": "disk full"}, "disk full"),
        (SHUTDOWN_FAILED, "lifespan.shutdown.failed, without a message"),
    ],
)
@pytest.mark.parametrize("then_raise", [False, True])
async def test_a_failed_shutdown_is_logged_once(
    event: Any, message: str, then_raise: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)
        await receive()
        await receive()
        await send(event)
        if then_raise:  # as Starlette does
            raise Failure

    async with run_lifespan(app, "auto"):
        pass
    assert logged_errors(caplog) == [f"Lifespan: the application's shutdown failed: {message}"]


@pytest.mark.parametrize("last_event", [None, SHUT_DOWN])
async def test_an_exception_during_shutdown_is_logged_once_with_its_traceback(
    last_event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)
        await receive()
        await receive()
        if last_event is not None:
            await send(last_event)
        raise Failure

    async with run_lifespan(app, "auto"):
        pass
    [error] = logged_errors(caplog)
    assert "raise Failure" in error


async def test_returning_without_having_answered_shutdown_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(STARTED)
        await receive()
        await receive()

    async with run_lifespan(app, "auto"):
        pass
    assert logged_errors(caplog) == []


async def test_whatever_a_lifespan_raises_does_not_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise asyncio.CancelledError

    async with run_lifespan(app, "auto"):
        await trio.testing.wait_all_tasks_blocked()
    [error] = logged_errors(caplog)
    assert "Lifespan: the application raised CancelledError()" in error


async def test_the_application_that_has_ended_gets_no_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(await receive())
        raise Failure

    async with run_lifespan(app, "auto"):
        await trio.testing.wait_all_tasks_blocked()
    assert events == [STARTUP]
    warning, record = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == "Lifespan: the application raised Failure() on lifespan.startup"
    assert warning.exc_info is not None
    assert record.levelno == logging.INFO
    assert record.getMessage() == "Lifespan: not supported by the application, which raised Failure()"


# Events that may not be sent.


@pytest.mark.parametrize(
    ("before", "event", "complaint"),
    [
        ([], None, "an event is a dict, not None"),
        (
            [],
            SHUT_DOWN,
            "unexpected event 'lifespan.shutdown.complete', expected 'lifespan.startup.complete' or ",
        ),
        ([], {**START_FAILED, "message": b"no"}, "'message' must be a str, not b'no'"),
        ([START_FAILED], STARTED, "'lifespan.startup.complete', the lifespan is reported as failed"),
        ([STARTED], STARTED, "'lifespan.startup.complete', the lifespan is between startup and shutdown"),
        ([STARTED], SHUT_DOWN, "'lifespan.shutdown.complete', the lifespan is between startup and shutdown"),
        ([STARTED, None], STARTED, "expected 'lifespan.shutdown.complete' or 'lifespan.shutdown.failed'"),
        ([STARTED, None], {**SHUTDOWN_FAILED, "message": 1}, "'message' must be a str, not 1"),
        ([STARTED, None, SHUT_DOWN], SHUT_DOWN, "'lifespan.shutdown.complete', the lifespan is shut down"),
    ],
)
async def test_an_invalid_event_raises_in_the_application(
    before: list[Any], event: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    raised = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for earlier in before:
            if earlier is None:
                assert await receive() == SHUTDOWN
            else:
                await send(earlier)
        with pytest.raises(InvalidEvent, match=re.escape(complaint)):
            await send(event)
        raised.append(complaint)

    try:
        async with run_lifespan(app, "auto"):
            await trio.testing.wait_all_tasks_blocked()
    except LifespanError:
        assert before == [START_FAILED]
    assert raised == [complaint]
    assert logged_errors(caplog) == []
