"""How much a peer may send in a time, and that nobody waits long for what it sends or for what it is sent."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.helpers import cancelled_after
from tests.scheduling import Pulse
from tests.websocket_peer import KIB, Peer, close_in, compressing, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError
from trio_ws_server.inbox import EVENTS_PER_TURN, PAYLOAD_PER_TURN
from trio_ws_server.transport.stream import StreamTransport

# The rate of messages


async def test_messages_up_to_the_rate_are_received(autojump_clock: MockClock) -> None:
    async with opened(limit_message_rate=5) as (websocket, peer):
        for _ in range(3):
            await peer.send(*[TextMessage("a")] * 5)
            assert [await websocket.recv() for _ in range(5)] == ["a"] * 5
            await trio.sleep(1)


@pytest.mark.parametrize("extra", [TextMessage("b"), BytesMessage(b"b"), Ping(), Pong()])
async def test_a_message_or_control_frame_above_the_rate_closes_the_connection_with_1008(
    extra: TextMessage | BytesMessage | Ping | Pong, autojump_clock: MockClock
) -> None:
    async with opened(limit_message_rate=5) as (websocket, peer):
        await peer.send(*[TextMessage("a")] * 5, extra)
        assert close_in(await peer.receive()) == Close(1008, "more than 5 messages a second")
        assert [await websocket.recv() for _ in range(5)] == ["a"] * 5
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()


async def test_fragments_of_one_message_count_as_one(autojump_clock: MockClock) -> None:
    async with opened(limit_message_rate=1) as (websocket, peer):
        pieces = [TextMessage("a", message_finished=False)] * 100
        await peer.send(*pieces, TextMessage("b"))
        assert await websocket.recv() == "a" * 100 + "b"


async def test_what_waited_while_the_application_did_not_receive_may_come_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with opened(limit_message_rate=10, inbox_messages=4, ping_interval=None) as (websocket, peer):

        async def send() -> None:
            for _ in range(200):
                await peer.send(TextMessage("a"))
                await trio.sleep(0.2)

        nursery.start_soon(send)
        await trio.sleep(20)
        assert [await websocket.recv() for _ in range(200)] == ["a"] * 200


async def test_an_application_that_pauses_allows_no_more_for_it_than_the_rate(
    autojump_clock: MockClock,
) -> None:
    async with opened(limit_message_rate=10, inbox_messages=4) as (websocket, peer):
        await peer.send(*[TextMessage("a")] * 100)
        await trio.sleep(5)
        assert [await websocket.recv() for _ in range(60)] == ["a"] * 60
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()


# Turns


@pytest.mark.parametrize(
    "frames",
    [[Pong()], [Ping()], [BytesMessage(b"", message_finished=False)]],
    ids=["pongs", "pings", "fragments"],
)
async def test_while_thousands_of_frames_are_taken_others_have_their_turn(
    frames: list[Ping | Pong | BytesMessage], nursery: trio.Nursery
) -> None:
    pulse = Pulse()
    async with opened() as (websocket, peer):
        await peer.send(*frames * 10_000, BytesMessage(b"end"))
        nursery.start_soon(pulse.run)
        assert await websocket.recv() == b"end"
        assert pulse.beats >= 100
        nursery.cancel_scope.cancel()


async def test_a_turn_ends_with_the_message_by_which_its_payload_is_enough() -> None:
    async with opened(inbox_bytes=4 * PAYLOAD_PER_TURN) as (websocket, peer):
        message = BytesMessage(bytes(PAYLOAD_PER_TURN // 8))
        websocket.data_received(b"".join(peer.connection.send(message) for _ in range(10)))
        assert websocket.traffic.messages_received == 8
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 10


async def test_frames_behind_the_first_turn_are_taken_though_nothing_more_comes() -> None:
    async with opened() as (websocket, peer):
        await peer.send(*[Pong()] * EVENTS_PER_TURN * 3, TextMessage("last"))
        assert await websocket.recv() == "last"


async def test_the_peers_end_comes_behind_all_its_frames() -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        messages = [
            TextMessage("a"),
            *[Pong()] * EVENTS_PER_TURN * 3,
            TextMessage("b"),
            CloseConnection(1000),
        ]
        await peer.send(*messages)
        await peer.stream.send_eof()
        await wait_all_tasks_blocked()
        assert [message async for message in websocket] == ["a", "b"]


async def test_frames_that_wait_stay_as_they_came_though_what_they_came_in_is_used_again() -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        texts = ["one", "two", "three"]
        received = bytearray(b"".join(peer.connection.send(TextMessage(text)) for text in texts))
        websocket.data_received(memoryview(received))
        received[:] = bytes(len(received))
        assert [await websocket.recv() for _ in texts] == texts


async def test_they_stay_so_where_a_fault_of_ours_keeps_the_first_from_being_dealt_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(transport: StreamTransport) -> None:
        raise ZeroDivisionError

    async with opened(inbox_messages=1) as (websocket, peer):
        texts = ["one", "two", "three"]
        received = bytearray(b"".join(peer.connection.send(TextMessage(text)) for text in texts))
        with monkeypatch.context() as patch:
            patch.setattr(StreamTransport, "pause_reading", fail)
            with pytest.raises(ZeroDivisionError):
                websocket.data_received(memoryview(received))
        received[:] = bytes(len(received))
        assert [await websocket.recv() for _ in texts] == texts


async def test_reading_is_paused_while_frames_wait_for_their_turn() -> None:
    async with opened() as (websocket, peer):
        await peer.send(*[Pong()] * EVENTS_PER_TURN * 3)
        await peer.send(TextMessage("next"))
        assert await websocket.recv() == "next"


@pytest.mark.usefixtures("network_of_all")
async def test_while_large_messages_are_inflated_others_have_their_turn(nursery: trio.Nursery) -> None:
    pulse = Pulse()
    async with compressing() as (websocket, peer):
        message = BytesMessage(bytes(4 * 1024 * KIB))
        wire = b"".join(peer.connection.send(message) for _ in range(4))
        assert len(wire) < 64 * KIB
        nursery.start_soon(pulse.run)
        await peer.stream.send_all(wire)
        assert [len(await websocket.recv()) for _ in range(4)] == [4 * 1024 * KIB] * 4
        assert pulse.beats >= 4
        nursery.cancel_scope.cancel()


# The compression of large messages

LARGE = random.Random(1).randbytes(100 * KIB).hex()
"""200 KiB that compress to half."""


async def next_text(peer: Peer) -> str:
    pieces = []
    while True:
        match await peer.receive():
            case TextMessage(data=data, message_finished=finished):
                pieces.append(data)
                if finished:
                    return "".join(pieces)
            case other:
                raise AssertionError(f"{other!r} is no text")


async def test_while_a_large_message_is_compressed_others_have_their_turn(nursery: trio.Nursery) -> None:
    pulse = Pulse()
    nursery.start_soon(pulse.run)
    async with compressing() as (websocket, peer):
        await websocket.send(LARGE)
        assert pulse.beats >= len(LARGE) // (64 * KIB)
        assert await next_text(peer) == LARGE
    nursery.cancel_scope.cancel()


async def test_other_senders_wait_for_a_large_message_and_all_arrive_whole(nursery: trio.Nursery) -> None:
    messages = [LARGE, "small " * 20, LARGE[::-1], "tiny", LARGE.upper()]
    async with compressing() as (websocket, peer):
        for message in messages:
            nursery.start_soon(websocket.send, message)
        assert sorted([await next_text(peer) for _ in messages]) == sorted(messages)


async def test_a_large_message_cancelled_at_any_step_leaves_the_compressor_as_it_was() -> None:
    async with compressing() as (websocket, peer):
        await websocket.send("before " * 20)
        assert await next_text(peer) == "before " * 20
        for step in itertools.count():
            cancelled = await cancelled_after(step, lambda: websocket.send(LARGE))
            await websocket.send(f"after {step} " * 20)
            if not cancelled:
                break
            assert await next_text(peer) == f"after {step} " * 20
        assert step > len(LARGE) // (32 * KIB)
        assert await next_text(peer) == LARGE
        assert await next_text(peer) == f"after {step} " * 20


async def test_a_connection_that_is_closed_while_a_large_message_is_compressed_sends_only_the_close(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with compressing() as (websocket, peer):
        errors: list[ConnectionClosed] = []

        async def send() -> None:
            try:
                await websocket.send(LARGE)
            except ConnectionClosed as exc:
                errors.append(exc)

        nursery.start_soon(send)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        websocket.start_closing(Close(1001))
        await wait_all_tasks_blocked()
        assert len(errors) == 1
        assert await peer.receive_all() == [CloseConnection(1001, "")]
