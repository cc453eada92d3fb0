"""
WebSocket clients that stall or vanish without a word: each is found in time, in whatever state, whoever waits.

The whole connection of a server is run, from the handshake on, with a client that does nothing by itself.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from tests.helpers import Client, asgi, logged_errors, native, run_connection
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected, ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Unpack

    from trio_ws_server.application import Application
    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Step = Callable[["Client"], Awaitable[None]]

KIB = 1024


class Breakable(trio.abc.HalfCloseableStream):
    """A stream whose connection can be reset, as by a TCP segment with RST: every call fails, even under way."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self._stream = stream
        self._broken = False
        self._under_way: set[trio.CancelScope] = set()

    def reset(self) -> None:
        self._broken = True
        for scope in self._under_way:
            scope.cancel()

    async def _unless_broken(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                if not self._broken:
                    return await call(*arguments)
            finally:
                self._under_way.discard(scope)
        raise trio.BrokenResourceError("connection reset by peer")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._unless_broken(self._stream.send_all, data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._unless_broken(self._stream.wait_send_all_might_not_block)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        received: bytes | bytearray = await self._unless_broken(self._stream.receive_some, max_bytes)
        return received

    async def send_eof(self) -> None:
        await self._unless_broken(self._stream.send_eof)

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def served(
    application: Application, *, lockstep: bool = False, **options: Unpack[Options]
) -> AsyncGenerator[tuple[Client, Breakable]]:
    """
    Serve one connection; yield the client's end, and the server's for what the network can do to it.

    The network takes everything or, in lockstep, nothing that is not being read. At the end, waits for the server
    to end the connection: the client doesn't. Keepalive is off unless asked for.
    """
    settings: dict[str, Any] = {"access_log": False, "ping_interval": None, **options}
    ours, theirs = lockstep_stream_pair() if lockstep else memory_stream_pair()
    stream = Breakable(theirs)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            connection = await nursery.start(run_connection, stream, application, Config(**settings))
            yield Client(ours, connection), stream
    with pytest.raises(trio.ClosedResourceError):
        await theirs.receive_some()


async def begin(client: Client) -> None:
    """Make the handshake, and have the application begin."""
    await client.open()
    await client.send_event(TextMessage("begin"))


# What applications do, once they are told to begin.


async def receives(websocket: WebSocket) -> None:
    async for _ in websocket:
        pass


async def sends(websocket: WebSocket) -> None:
    await websocket.recv()
    await websocket.send(bytes(100 * KIB))
    await receives(websocket)


async def pings(websocket: WebSocket) -> None:
    await websocket.recv()
    await websocket.ping()


async def closes(websocket: WebSocket) -> None:
    await websocket.recv()
    await websocket.close()


async def returns(websocket: WebSocket) -> None:
    await websocket.recv()


async def raises(websocket: WebSocket) -> None:
    await websocket.recv()
    raise ArithmeticError("the handler's own")


async def accept(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    assert (await receive())["text"] == "begin"


async def asgi_receives(scope: object, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await receive()


async def asgi_sends(scope: object, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await send({"type": "websocket.send", "bytes": bytes(100 * KIB)})
    await receive()


async def asgi_closes(scope: object, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    await send({"type": "websocket.close"})
    await receive()


async def asgi_undecided(scope: object, receive: Receive, send: Send) -> None:
    await receive()
    assert await receive() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    with pytest.raises(ClientDisconnected):
        await send({"type": "websocket.accept"})


# What clients do, once the application has begun.


async def do_nothing(client: Client) -> None:
    pass


async def shut_down(client: Client) -> None:
    assert client.connection is not None
    client.connection.begin_drain(Close(1012))


async def break_the_protocol(client: Client) -> None:
    await client.send(b"\xff\xff")


async def send_half_a_frame(client: Client) -> None:
    await client.send(b"\x82\xfe\x01\x00\x00\x00\x00\x00half")


async def send_half_a_message(client: Client) -> None:
    await client.send_event(TextMessage("half", message_finished=False))


async def send_a_ping(client: Client) -> None:
    await client.send_event(Ping(b"anyone?"))


async def send_a_close(client: Client) -> None:
    await client.send_event(CloseConnection(1000))


# Who has something to send to a client that takes nothing.
SENDERS: dict[str, tuple[Application, Step]] = {
    "handler in send": (native(sends), do_nothing),
    "handler in ping": (native(pings), do_nothing),
    "handler in close": (native(closes), do_nothing),
    "handler that has returned": (native(returns), do_nothing),
    "handler that has failed": (native(raises), do_nothing),
    "application in send": (asgi(asgi_sends), do_nothing),
    "application that has closed": (asgi(asgi_closes), do_nothing),
    "nobody: shutdown": (native(receives), shut_down),
    "nobody: answer to a ping": (native(receives), send_a_ping),
    "nobody: answer to a close": (native(receives), send_a_close),
    "nobody: protocol error": (native(receives), break_the_protocol),
}

# Who starts a closing handshake.
CLOSERS = {name: step for name, step in SENDERS.items() if "ping" not in name and "in send" not in name}
del CLOSERS["nobody: answer to a close"]

# Everything that can be under way on a connection that is not being read from.
STATES = SENDERS | {
    "open": (native(receives), do_nothing),
    "half a frame": (native(receives), send_half_a_frame),
    "half a message": (native(receives), send_half_a_message),
    "application in receive": (asgi(asgi_receives), do_nothing),
}


def steps(of: dict[str, tuple[Application, Step]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("application", "step"), of.values(), ids=of)


# Stalled: the client takes no bytes.


@steps(SENDERS)
async def test_a_client_that_takes_no_bytes_is_dropped_after_the_write_timeout_whoever_waits(
    application: Application, step: Step, autojump_clock: MockClock
) -> None:
    async with served(application, lockstep=True, write_timeout=30, close_timeout=1000) as (client, _):
        await begin(client)
        await step(client)
    assert trio.current_time() == 30


async def test_a_client_that_takes_no_bytes_is_dropped_for_a_keepalive_ping_alone(
    autojump_clock: MockClock,
) -> None:
    async with served(
        native(receives), lockstep=True, ping_interval=20, ping_timeout=None, write_timeout=30
    ) as (client, _):
        await begin(client)
    assert trio.current_time() == 20 + 30


async def test_an_application_that_waits_to_send_to_it_is_told_and_nothing_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []

    async def app(scope: object, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        try:
            await send({"type": "websocket.send", "bytes": bytes(100 * KIB)})
        except OSError:
            told.append(trio.current_time())
            told.append(await receive())
            raise

    async with served(asgi(app), lockstep=True, write_timeout=30) as (client, _):
        await begin(client)
    assert told == [30, {"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert logged_errors(caplog) == []


# Dead: the network takes everything, and nothing comes back.


@pytest.mark.parametrize("last_words", [do_nothing, send_half_a_frame, send_half_a_message])
@pytest.mark.parametrize("death", [0, 1, 19, 20, 21, 39, 41, 59])
async def test_a_dead_client_is_found_within_ping_interval_and_timeout_whenever_it_dies(
    death: float, last_words: Step, autojump_clock: MockClock
) -> None:
    told = math.inf

    async def handler(websocket: WebSocket) -> None:
        nonlocal told
        with pytest.raises(ConnectionClosed, match="keepalive ping timeout"):
            await receives(websocket)
        told = trio.current_time()

    options: Options = {"ping_interval": 20, "ping_timeout": 15, "close_timeout": 10}
    async with served(native(handler), **options) as (client, _):
        await begin(client)
        with trio.move_on_at(death):
            while isinstance(event := await client.event(), Ping):
                await client.send_event(event.response())
        await last_words(client)
    assert death + 15 <= told <= death + 20 + 15
    assert trio.current_time() == told + 10


@pytest.mark.parametrize("handler", [receives, pings])
async def test_a_client_found_dead_is_dropped_even_though_it_takes_no_close_frame(
    handler: Callable[[WebSocket], Awaitable[None]], autojump_clock: MockClock
) -> None:
    told = math.inf

    async def noted(websocket: WebSocket) -> None:
        nonlocal told
        try:
            await handler(websocket)
        finally:
            told = trio.current_time()

    options: Options = {"ping_interval": 20, "ping_timeout": 15, "write_timeout": 1000, "close_timeout": 10}
    async with served(native(noted), lockstep=True, **options) as (client, _):
        await begin(client)
    assert told == 20 + 15
    assert trio.current_time() == 20 + 15 + 10


# Paused: our application does not take what the client sends.


@pytest.mark.parametrize("pause", [0, 1, 29], ids=["burst", "steady", "as slow as the application"])
async def test_a_client_that_sends_faster_than_the_application_takes_is_never_taken_for_dead(
    pause: float, autojump_clock: MockClock
) -> None:
    messages = [str(number) for number in range(40)]

    async def handler(websocket: WebSocket) -> None:
        for message in messages:
            assert await websocket.recv() == message
            await trio.sleep(30)

    options: Options = {"ping_interval": 20, "ping_timeout": 20, "inbox_messages": 1}
    async with served(native(handler), **options) as (client, _), trio.open_nursery() as nursery:
        await client.open()

        async def send() -> None:
            for message in messages:
                await client.send_event(TextMessage(message))
                await trio.sleep(pause)

        nursery.start_soon(send)
        while isinstance(event := await client.event(), Ping):
            await client.send_event(event.response())
        assert event == CloseConnection(1000, "")
        await client.stream.aclose()


async def test_a_client_that_dies_while_the_application_takes_nothing_is_found_once_it_takes_again(
    autojump_clock: MockClock,
) -> None:
    async def handler(websocket: WebSocket) -> None:
        await trio.sleep(1000)
        with pytest.raises(ConnectionClosed, match="keepalive ping timeout"):
            await receives(websocket)
        assert trio.current_time() == 1000 + 20

    options: Options = {"ping_interval": 20, "ping_timeout": 20, "inbox_messages": 1}
    async with served(native(handler), **options) as (client, _):
        await client.open()
        await client.send_event(TextMessage("last words"))


# Half-closed: the client ends its side without a close frame.


@pytest.mark.parametrize("last_words", [do_nothing, send_half_a_frame, send_half_a_message])
@pytest.mark.parametrize("busy", [0, 5])
async def test_a_client_that_ends_its_side_is_lost_behind_its_last_whole_message(
    busy: float, last_words: Step, autojump_clock: MockClock
) -> None:
    async def handler(websocket: WebSocket) -> None:
        await trio.sleep(busy)
        assert [await websocket.recv() for _ in range(3)] == ["one", "two", "three"]
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.recv()
        assert (caught.value.code, caught.value.received) == (1006, None)

    async with served(native(handler), inbox_messages=1) as (client, _):
        await client.open()
        for text in "one", "two", "three":
            await client.send_event(TextMessage(text))
        await last_words(client)
        await client.send_eof()
        assert await client.receive_all() == b""
    assert trio.current_time() == busy


async def test_a_client_that_ends_its_side_still_gets_what_was_sent_before() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.recv()
        await websocket.send(bytes(100 * KIB))
        with pytest.raises(ConnectionClosed):
            await websocket.send("too late")

    async with served(native(handler), lockstep=True) as (client, _):
        await begin(client)
        await client.send_eof()
        received = 0
        while received < 100 * KIB:
            event = await client.event()
            assert isinstance(event, BytesMessage)
            received += len(event.data)
        assert await client.receive_all() == b""


# Reset.


@steps(STATES)
@pytest.mark.parametrize("lockstep", [False, True], ids=["network takes all", "network takes nothing"])
async def test_a_reset_ends_a_connection_at_once_in_every_state(
    application: Application,
    step: Step,
    lockstep: bool,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(application, lockstep=lockstep) as (client, network):
        await begin(client)
        await step(client)
        await wait_all_tasks_blocked()
        network.reset()
    assert trio.current_time() == 0
    assert all("the handler's own" in record for record in logged_errors(caplog))


async def test_a_reset_before_the_handshake_is_answered_is_a_disconnect(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(asgi(asgi_undecided)) as (client, network), trio.open_nursery() as nursery:
        nursery.start_soon(client.open)
        await wait_all_tasks_blocked()
        network.reset()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 0
    assert logged_errors(caplog) == []


async def test_a_reset_that_nobody_reads_is_found_by_the_next_ping_and_loses_no_message(
    autojump_clock: MockClock,
) -> None:
    async def handler(websocket: WebSocket) -> None:
        await trio.sleep(20)
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionClosed):
            await websocket.send("are you there?")
        assert await websocket.recv() == "message"
        with pytest.raises(ConnectionClosed):
            await websocket.recv()

    async with served(native(handler), ping_interval=20, inbox_messages=1) as (client, network):
        await client.open()
        await client.send_event(TextMessage("message"))
        await wait_all_tasks_blocked()
        network.reset()


# A client that leaves our close frame unanswered.


async def be_silent(client: Client) -> None:
    pass


async def keep_talking(client: Client) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await client.send_event(TextMessage("by the way"))
            await trio.sleep(1)


async def answer_without_coming_to_an_end(client: Client) -> None:
    await client.send(b"\x88")
    await trio.sleep(9)
    await client.send(b"\x82")


@pytest.mark.parametrize("how", [be_silent, keep_talking, answer_without_coming_to_an_end])
@pytest.mark.parametrize("lockstep", [False, True], ids=["network takes all", "network takes nothing"])
@steps(CLOSERS)
async def test_a_client_that_never_answers_our_close_is_dropped_after_the_close_timeout(
    application: Application,
    step: Step,
    lockstep: bool,
    how: Step,
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        async with served(application, lockstep=lockstep, close_timeout=10) as (client, _):
            await begin(client)
            await step(client)
            nursery.start_soon(how, client)
        assert trio.current_time() == 10


async def test_a_client_that_answers_our_close_but_never_ends_its_side_is_dropped_after_the_close_timeout(
    autojump_clock: MockClock,
) -> None:
    async with served(native(closes), close_timeout=10) as (client, _):
        await begin(client)
        assert await client.event() == CloseConnection(1000, "")
        await client.send_event(CloseConnection(1000))
        assert await client.receive_all() == b""
        assert trio.current_time() == 0
    assert trio.current_time() == 10
