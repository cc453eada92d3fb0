"""Messages over a WebSocket connection arrive whole and in order, and what waits to be sent is bounded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from tests.helpers import cancelled_after
from tests.websocket_peer import KIB, Peer, calls, opened, stall
from trio_ws_server.errors import ConnectionClosedError
from trio_ws_server.protocol.frames import JOINED_SIZE, SHARED_SIZE
from trio_ws_server.protocol.websocket import State
from trio_ws_server.transport.stream import StreamTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.websocket import WebSocket

# Messages


async def test_text_is_received_as_str_and_binary_as_bytes() -> None:
    async with opened() as (websocket, peer):
        await peer.send(TextMessage("Grüße"), BytesMessage(b"\x00\xff"), TextMessage(""), BytesMessage(b""))
        assert [await websocket.recv() for _ in range(4)] == ["Grüße", b"\x00\xff", "", b""]


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ("Grüße", TextMessage("Grüße")),
        (b"\x00\xff", BytesMessage(b"\x00\xff")),
        (bytearray(b"\x00\xff"), BytesMessage(b"\x00\xff")),
        (memoryview(b"\x00-\xff-")[::2], BytesMessage(b"\x00\xff")),
    ],
)
async def test_str_is_sent_as_text_and_bytes_like_as_binary(
    message: str | bytes | bytearray | memoryview, event: Event
) -> None:
    async with opened() as (websocket, peer):
        await websocket.send(message)
        assert await peer.receive() == event


@pytest.mark.parametrize("client", [False, True])
@given(messages=st.lists(st.text() | st.binary(), max_size=8), data=st.data())
async def test_any_messages_however_cut_are_received_before_the_close(
    client: bool, messages: list[str | bytes], data: st.DataObject
) -> None:
    async with opened(client=client, inbox_messages=3) as (websocket, peer):
        events = [TextMessage(m) if isinstance(m, str) else BytesMessage(m) for m in messages]
        wire = b"".join(peer.connection.send(event) for event in (*events, CloseConnection(1000)))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
        for start, end in itertools.pairwise([0, *cuts, len(wire)]):
            await peer.stream.send_all(wire[start:end])
            if data.draw(st.booleans()):
                await wait_all_tasks_blocked()
        assert [message async for message in websocket] == messages
        await peer.vanish()


@pytest.mark.parametrize("message", [None, 1, ["text"], object()])
async def test_a_message_of_another_type_is_refused(message: Any) -> None:
    async with opened() as (websocket, _):
        with pytest.raises(TypeError, match=f"str or bytes-like, not {type(message).__name__}"):
            await websocket.send(message)
        assert websocket.traffic.messages_sent == 0
        assert websocket.state is State.OPEN


async def test_text_that_is_not_unicode_is_refused_and_harms_nothing() -> None:
    async with opened() as (websocket, peer):
        with pytest.raises(UnicodeEncodeError):
            await websocket.send("\ud800")
        await websocket.send("text")
        assert await peer.receive() == TextMessage("text")
        assert websocket.traffic.messages_sent == 1


async def test_messages_of_several_senders_leave_whole_and_in_each_ones_order() -> None:
    async def send(name: str) -> None:
        for number in range(20):
            await websocket.send(f"{name}{number:02}" * 5000)

    received: list[str] = []
    async with opened(lockstep=True) as (websocket, peer), trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(send, name)
        pieces = []
        while len(received) < 60:
            match await peer.receive():
                case TextMessage(data=data, message_finished=finished):
                    pieces.append(data)
            if finished:
                received.append("".join(pieces))
                pieces = []
    for name in "abc":
        assert [m for m in received if m[0] == name] == [f"{name}{number:02}" * 5000 for number in range(20)]


async def test_traffic_counts_messages_and_bytes_each_way() -> None:
    async with opened() as (websocket, peer):
        await peer.send(TextMessage("Grüße"), Ping(b"ping"), BytesMessage(b"123"))
        await websocket.recv()
        await websocket.send("ä")
        traffic = websocket.traffic
        assert (traffic.messages_received, traffic.bytes_received) == (2, 10)
        assert (traffic.messages_sent, traffic.bytes_sent) == (1, 2)


@pytest.mark.parametrize("message", [bytes(JOINED_SIZE), "\xe4" * (SHARED_SIZE // 2)], ids=["binary", "text"])
async def test_a_message_that_several_get_is_encoded_once(
    message: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(StreamTransport, "write", lambda _, data: written.append(data))
    async with opened() as (first, _), opened() as (second, _):
        await first.send(message)
        await second.send(message)
        frame, again = written
        assert frame is again


async def test_a_binary_message_above_16_kib_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(StreamTransport, "write", lambda _, data: written.append(data))
    message = bytes(JOINED_SIZE + 1)
    async with opened() as (websocket, _):
        await websocket.send(message)
        header, payload = written
        assert payload is message
        assert len(header) == 4


async def test_the_connection_knows_its_request_and_subprotocol() -> None:
    async with opened() as (websocket, _):
        assert websocket.path == "/chat?room=1"
        assert websocket.request.headers["origin"] == "http://example.org"
        assert websocket.subprotocol == "chat"


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_send_that_is_cancelled_anywhere_leaves_nothing_or_the_whole_message(stalled: bool) -> None:
    before = bytes(100 * KIB) if stalled else b""

    async def read_once_all_wait(peer: Peer, received: bytearray) -> None:
        await wait_all_tasks_blocked()
        while not received.endswith(b"last"):
            event = await peer.receive()
            assert isinstance(event, BytesMessage)
            received += event.data

    for steps in itertools.count():
        received = bytearray()
        async with opened(lockstep=True) as (websocket, peer), trio.open_nursery() as nursery:
            if stalled:
                await stall(websocket, len(before))
            nursery.start_soon(read_once_all_wait, peer, received)
            cancelled = await cancelled_after(steps, lambda: websocket.send(b"x" * 100 * KIB))
            await websocket.send(b"last")
        assert received in (before + b"last", before + b"x" * 100 * KIB + b"last")
        if not cancelled:
            break
    assert steps > 1


async def test_a_recv_that_is_cancelled_anywhere_loses_no_message() -> None:
    for steps in itertools.count():
        received: list[str | bytes] = []

        async def receive(websocket: WebSocket, received: list[str | bytes] = received) -> None:
            received.append(await websocket.recv())

        async with opened() as (websocket, peer), trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, TextMessage("message"))
            cancelled = await cancelled_after(steps, lambda: receive(websocket))
            if cancelled:
                await receive(websocket)
        assert received == ["message"]
        if not cancelled:
            break
    assert steps > 1


# Flow control


async def test_a_sender_waits_while_too_much_is_unsent() -> None:
    async with (
        opened(lockstep=True, write_high_water=8 * KIB, write_low_water=2 * KIB) as (websocket, peer),
        trio.open_nursery() as nursery,
    ):
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < 100:
                await websocket.send(bytes(KIB))
                sent += 1

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert sent == 7
        for _ in range(100):
            assert await peer.receive() == BytesMessage(bytes(KIB))
        await wait_all_tasks_blocked()
        assert sent == 100


async def test_sends_given_up_on_one_after_the_other_do_not_pile_up(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, write_high_water=8 * KIB, write_low_water=KIB) as (websocket, peer):
        for _ in range(100):
            with trio.move_on_after(0.01):
                await websocket.send(bytes(KIB))
        assert websocket.traffic.bytes_sent <= 9 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.send, "last")
            while await peer.receive() != TextMessage("last"):
                pass


async def test_many_senders_to_a_stalled_peer_do_not_pile_up() -> None:
    async with (
        opened(lockstep=True, write_high_water=8 * KIB, write_low_water=KIB) as (websocket, _),
        trio.open_nursery() as nursery,
    ):
        for _ in range(100):
            nursery.start_soon(websocket.send, bytes(KIB))
        await wait_all_tasks_blocked()
        assert websocket.traffic.bytes_sent <= 9 * KIB
        nursery.cancel_scope.cancel()


@calls
async def test_a_peer_that_takes_no_bytes_is_dropped_whoever_waits(
    call: Callable[[WebSocket], Awaitable[object]], autojump_clock: MockClock
) -> None:
    async with opened(lockstep=True, write_timeout=30) as (websocket, _):
        await stall(websocket)
        with pytest.raises(ConnectionClosedError, match="no close frame received"):
            await call(websocket)
        assert trio.current_time() == 30
        assert websocket.close_seen.code == 1006


async def test_closing_to_a_peer_that_takes_no_bytes_ends_in_time(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, close_timeout=10) as (websocket, _):
        await stall(websocket)
        await websocket.close()
        assert trio.current_time() == 10


async def test_a_stalled_peer_is_dropped_for_its_keepalive_ping_alone(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, ping_interval=20, ping_timeout=None, write_timeout=30) as (websocket, _):
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == 50
