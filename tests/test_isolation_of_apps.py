"""Whatever an application raises, swallows or leaves behind, in whatever phase: other connections go on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import CloseConnection, RejectConnection, TextMessage
from wsproto.utilities import LocalProtocolError

from tests.helpers import Client, asgi, logged_errors, serving
from trio_ws_server.app_errors import split
from trio_ws_server.serving import serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_ws_server.server import Server

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

FAILURES = [
    ValueError("a failure"),
    OSError("a failure"),
    StopAsyncIteration("a failure"),
    GeneratorExit("a failure"),
    SystemExit("a failure"),
    asyncio.CancelledError("a failure"),
    ExceptionGroup("a failure", [ValueError(), ExceptionGroup("inner", [TypeError()])]),
    BaseExceptionGroup("a failure", [GeneratorExit(), SystemExit(), asyncio.CancelledError()]),
]
failures = pytest.mark.parametrize("failure", FAILURES, ids=repr)

PHASES = ["called", "connected", "accepted", "received", "closed", "denying", "denied"]


def failing(failure: BaseException, phase: str) -> Callable[[Any, Receive, Send], Awaitable[None]]:
    """Return an application that fails in a phase of a WebSocket's, and echoes otherwise."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        def at(reached: str) -> None:
            if scope["path"] == "/fail" and reached == phase:
                raise failure.with_traceback(None)

        at("called")
        await receive()
        at("connected")
        if scope["path"] == "/fail" and phase.startswith("den"):
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            at("denying")
            await send({"type": "websocket.http.response.body", "body": b"who are you?"})
            at("denied")
        await send({"type": "websocket.accept"})
        at("accepted")
        while (event := await receive())["type"] == "websocket.receive":
            at("received")
            await send(event | {"type": "websocket.send"})
            if scope["path"] == "/fail" and phase == "closed":
                await send({"type": "websocket.close"})
                at("closed")

    return app


async def fail(client: Client) -> None:
    """Be there while the application fails."""
    if isinstance(await client.open("/fail"), RejectConnection):
        await client.receive_all()
        return
    with suppress(trio.BrokenResourceError, LocalProtocolError):  # it is over already
        await client.send_event(TextMessage("hello"))
        while not isinstance(event := await client.event(), CloseConnection):
            assert event == TextMessage("hello")
        await client.send_event(event.response())
        await client.receive_all()


async def say(client: Client, word: str) -> None:
    await client.send_event(TextMessage(word))
    assert await client.event() == TextMessage(word)


@failures
@pytest.mark.parametrize("phase", PHASES)
async def test_an_exception_in_any_phase_ends_its_own_connection_only(
    phase: str,
    failure: BaseException,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with trio.open_nursery() as nursery:
        start = partial(
            serve, failing(failure, phase), uds=tmp_path / "socket", lifespan="off", access_log=False
        )
        server: Server = await nursery.start(start)
        bystander = Client(await trio.open_unix_socket(tmp_path / "socket"))
        await bystander.open()
        await say(bystander, "before")
        victim = Client(await trio.open_unix_socket(tmp_path / "socket"))
        await fail(victim)
        await victim.stream.aclose()
        await say(bystander, "after")
        server.shut_down()
        event = await bystander.event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1012
        await bystander.send_event(event.response())
        await bystander.stream.aclose()
    [error] = logged_errors(caplog)
    assert "exception in the application\n" in error
    assert "in at\n" in error


def test_an_application_whose_coroutine_is_thrown_away_is_let_go() -> None:
    thrown_away = GeneratorExit()
    assert split(thrown_away) == (None, thrown_away)


async def test_ctrl_c_in_an_application_ends_the_server(tmp_path: Path) -> None:
    async def interrupt() -> None:
        async with trio.open_nursery() as nursery:
            start = partial(
                serve, failing(KeyboardInterrupt(), "received"), uds=tmp_path / "socket", lifespan="off"
            )
            await nursery.start(start)
            client = Client(await trio.open_unix_socket(tmp_path / "socket"))
            async with client.stream:
                await fail(client)

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        await interrupt()


@pytest.mark.parametrize("failure", [None, *FAILURES], ids=repr)
async def test_an_application_that_swallows_its_cancellation_still_ends_with_the_server(
    failure: BaseException | None, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if failure is not None:
                raise failure from None

    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(
            partial(serve, app, uds=tmp_path / "socket", lifespan="off", graceful_timeout=5)
        )
        client = Client(await trio.open_unix_socket(tmp_path / "socket"))
        await client.open()
        server.shut_down()
    assert trio.current_time() == 5
    await client.stream.aclose()


async def test_a_task_left_behind_by_an_application_is_told_that_the_connection_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[object] = []

    async with trio.open_nursery() as elsewhere:

        async def go_on(receive: Receive, send: Send) -> None:
            await wait_all_tasks_blocked()
            seen.append((await receive())["type"])
            with pytest.raises(OSError, match="closed"):
                await send({"type": "websocket.send", "text": "too late"})

        async def app(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            elsewhere.start_soon(go_on, receive, send)

        async with serving(asgi(app)) as client:
            await client.open()
            event = await client.event()
            assert isinstance(event, CloseConnection)
            assert event.code == 1000
            await client.send_event(event.response())
            assert await client.receive_all() == b""
    assert seen == ["websocket.disconnect"]
    assert logged_errors(caplog) == []
