"""What the peer sends waits for the tasks that receive: taken in turns, and no more than there is room for."""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tests.helpers import OneWay, cancelled_after
from tests.protocol.frames import BINARY, frame
from tests.scheduling import Pulse, let_yield
from tests.websocket_peer import KIB, Peer, close_in, compressing, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.inbox import EVENTS_AT_THE_END, EVENTS_PER_TURN, PAYLOAD_PER_CALL, PAYLOAD_PER_TURN
from trio_ws_server.protocol.websocket import State, WebSocketProtocol
from trio_ws_server.transport.stream import StreamTransport

if TYPE_CHECKING:
    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket


def wire(peer: Peer, *events: Event) -> bytes:
    """Return the peer's frames in one piece."""
    return b"".join(map(peer.connection.send, events))


# Who takes what is there


async def test_each_message_goes_to_one_of_several_receivers_and_the_end_to_all() -> None:
    received: list[str | bytes] = []
    closed = 0

    async def receive() -> None:
        nonlocal closed
        try:
            while True:
                received.append(await websocket.recv())
        except ConnectionClosedOK:
            closed += 1

    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await peer.send(*(TextMessage(str(number)) for number in range(10)))
        await wait_all_tasks_blocked()
        await peer.send(CloseConnection(1000))
        await peer.vanish()
    assert sorted(received) == [str(number) for number in range(10)]
    assert closed == 3


async def test_messages_are_counted_in_bytes_of_utf_8_in_whatever_frames_they_come() -> None:
    async with opened(limit_message_rate=10) as (websocket, peer):
        await peer.send(
            TextMessage("Grü", message_finished=False), Ping(), TextMessage("ße"), TextMessage("€")
        )
        assert [await websocket.recv() for _ in range(2)] == ["Grüße", "€"]
        assert (websocket.traffic.messages_received, websocket.traffic.bytes_received) == (2, 10)


# Room for what comes


@pytest.mark.parametrize("end", ["close", "eof", "open"])
async def test_of_many_messages_in_one_piece_the_inbox_takes_what_it_has_room_for(end: str) -> None:
    async with opened(inbox_messages=4) as (websocket, peer):
        events: list[Event] = [TextMessage(str(number)) for number in range(100)]
        if end == "close":
            events.append(CloseConnection(1001))
        await peer.send(*events)
        if end == "eof":
            await peer.stream.send_eof()
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 4
        for number in range(100):
            assert await websocket.recv() == str(number)
            assert websocket.traffic.messages_received <= number + 1 + 4
        if end != "open":
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.recv()
            assert caught.value.code == (1001 if end == "close" else 1006)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"inbox_messages": 4}, "x"),
        ({"inbox_bytes": 4 * KIB}, "x" * KIB),
        ({"inbox_bytes": 4 * KIB}, "€" * 342),
    ],
)
async def test_a_full_inbox_pauses_reading_until_messages_are_taken(limit: Options, message: str) -> None:
    accepted = 0

    async def send_all() -> None:
        nonlocal accepted
        for _ in range(20):
            await peer.send(TextMessage(message))
            accepted += 1

    async with opened(lockstep=True, **limit) as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        await wait_all_tasks_blocked()
        for taken in range(20):
            # A transport may have been reading one more when it was told to pause.
            assert min(20, 4 + taken) <= accepted <= 5 + taken
            assert await websocket.recv() == message
            await wait_all_tasks_blocked()


async def test_of_many_messages_in_one_piece_no_more_bytes_are_taken_than_there_is_room_for() -> None:
    async with opened(inbox_bytes=4 * KIB) as (websocket, peer):
        await peer.send(*[BytesMessage(bytes(KIB))] * 20)
        await wait_all_tasks_blocked()
        for taken in range(20):
            assert websocket.traffic.bytes_received == min(20, 4 + taken) * KIB
            assert await websocket.recv() == bytes(KIB)


async def test_an_inbox_that_is_still_full_when_a_message_is_taken_takes_no_other() -> None:
    async with opened(inbox_bytes=4 * KIB) as (websocket, peer):
        messages = [b"small", bytes(8 * KIB), b"next"]
        await peer.send(*map(BytesMessage, messages))
        await wait_all_tasks_blocked()
        assert await websocket.recv() == messages[0]
        assert websocket.traffic.messages_received == 2
        assert [await websocket.recv() for _ in range(2)] == messages[1:]


async def test_frames_behind_a_full_inbox_are_read_before_the_peers_end() -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, TextMessage("a"), TextMessage("b"), CloseConnection(1000)))
        websocket.eof_received()
        assert [message async for message in websocket] == ["a", "b"]


@pytest.mark.parametrize("size", [1, PAYLOAD_PER_TURN])
async def test_the_peers_end_waits_like_what_came_before_it_until_the_inbox_has_room(size: int) -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, TextMessage("a"), BytesMessage(bytes(size))))
        websocket.eof_received()
        assert [(await websocket.recv(), websocket.state) for _ in range(2)] == [
            ("a", State.OPEN),
            (bytes(size), State.CLOSED),
        ]


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


async def test_a_peer_that_exceeds_the_rate_is_seen_to_have_been_closed_for_it(
    autojump_clock: MockClock,
) -> None:
    async with opened(limit_message_rate=1) as (websocket, peer):
        await peer.send(TextMessage("a"), TextMessage("b"))
        await peer.receive()
        assert websocket.close_seen == Close(1008, "more than 1 messages a second")


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


async def test_a_turn_ends_with_the_message_by_which_its_payload_is_enough() -> None:
    async with opened(inbox_bytes=4 * PAYLOAD_PER_TURN) as (websocket, peer):
        message = BytesMessage(bytes(PAYLOAD_PER_TURN // 8))
        websocket.data_received(b"".join(peer.connection.send(message) for _ in range(10)))
        assert websocket.traffic.messages_received == 8
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 10


async def test_what_is_behind_a_message_that_is_enough_for_a_turn_is_taken_though_nothing_more_comes() -> (
    None
):
    async with opened(inbox_bytes=2 * PAYLOAD_PER_TURN) as (websocket, peer):
        message = BytesMessage(bytes(PAYLOAD_PER_TURN))
        websocket.data_received(wire(peer, message, TextMessage("last")))
        assert websocket.traffic.messages_received == 1
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 2


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


async def test_reading_is_paused_while_frames_wait_for_their_turn() -> None:
    async with opened() as (websocket, peer):
        await peer.send(*[Pong()] * EVENTS_PER_TURN * 3)
        await peer.send(TextMessage("next"))
        assert await websocket.recv() == "next"


async def test_a_turn_ends_with_so_many_messages_though_there_is_room_for_more() -> None:
    async with opened(inbox_messages=4 * EVENTS_PER_TURN) as (websocket, peer):
        websocket.data_received(wire(peer, *[TextMessage("a")] * 3 * EVENTS_PER_TURN))
        assert websocket.traffic.messages_received == EVENTS_PER_TURN
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 3 * EVENTS_PER_TURN


async def test_the_messages_of_a_turn_count_together_with_its_other_frames() -> None:
    async with opened() as (websocket, peer):
        half = EVENTS_PER_TURN // 2
        frames = [*[TextMessage("a")] * half, *[Pong()] * half, TextMessage("b")]
        websocket.data_received(wire(peer, *frames))
        assert websocket.traffic.messages_received == half
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == half + 1


async def test_frames_that_wait_for_their_turn_are_read_before_the_peers_end() -> None:
    async with opened() as (websocket, peer):
        pongs = [Pong()] * 3 * EVENTS_PER_TURN
        websocket.data_received(wire(peer, *pongs, TextMessage("last"), CloseConnection(1000)))
        websocket.eof_received()
        assert [message async for message in websocket] == ["last"]


async def test_a_peers_silence_counts_only_from_when_all_that_waited_for_its_turn_is_taken(
    mock_clock: MockClock,
) -> None:
    async with opened() as (websocket, peer):
        websocket.data_received(wire(peer, *[Pong()] * 3 * EVENTS_PER_TURN))
        mock_clock.jump(5)
        assert not websocket.listening
        await wait_all_tasks_blocked()
        assert websocket.listening_since == trio.current_time()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what transports are told, in the course of the test, of reading."""
    calls: list[str] = []
    monkeypatch.setattr(StreamTransport, "pause_reading", lambda _: calls.append("pause"))
    monkeypatch.setattr(StreamTransport, "resume_reading", lambda _: calls.append("resume"))
    return calls


async def test_the_transport_is_paused_until_no_frame_waits_for_its_turn(told: list[str]) -> None:
    async with opened() as (websocket, peer):
        websocket.data_received(wire(peer, *[Pong()] * 3 * EVENTS_PER_TURN))
        assert told == ["pause"]
        # What was on its way in.
        websocket.data_received(wire(peer, Pong()))
        await wait_all_tasks_blocked()
        assert told == ["pause", "resume"]


async def test_the_transport_is_not_paused_for_as_many_frames_as_one_turn_takes(told: list[str]) -> None:
    async with opened() as (websocket, peer):
        websocket.data_received(wire(peer, *[Pong()] * EVENTS_PER_TURN))
        await wait_all_tasks_blocked()
        assert told == []


async def test_the_transport_is_not_paused_for_one_message_that_is_enough_for_a_turn(told: list[str]) -> None:
    async with opened(inbox_bytes=2 * PAYLOAD_PER_TURN) as (websocket, peer):
        websocket.data_received(wire(peer, BytesMessage(bytes(PAYLOAD_PER_TURN))))
        await wait_all_tasks_blocked()
        assert told == []


async def test_the_transport_stays_paused_where_the_last_turn_fills_the_inbox(told: list[str]) -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, *[Pong()] * EVENTS_PER_TURN, TextMessage("a"), TextMessage("b")))
        await wait_all_tasks_blocked()
        assert "resume" not in told
        assert [await websocket.recv() for _ in range(2)] == ["a", "b"]
        assert told[-1] == "resume"


async def test_the_transport_stays_paused_where_what_waits_fills_the_inbox_again(told: list[str]) -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, TextMessage("a"), TextMessage("b")))
        assert await websocket.recv() == "a"
        assert "resume" not in told
        assert await websocket.recv() == "b"
        assert told[-1] == "resume"


async def test_the_transport_stays_paused_where_there_is_room_again_but_more_than_a_turn_waits(
    told: list[str],
) -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, TextMessage("a"), *[Pong()] * 3 * EVENTS_PER_TURN))
        assert await websocket.recv() == "a"
        assert "resume" not in told
        await wait_all_tasks_blocked()
        assert told[-1] == "resume"


async def test_who_makes_room_for_little_need_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    let_yield(monkeypatch, always=False)
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, *[TextMessage("a")] * 100))
        assert [await cancelled_after(1, websocket.recv) for _ in range(100)] == [False] * 100


async def test_who_makes_room_for_much_gives_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    let_yield(monkeypatch, always=False)
    full, much = BytesMessage(bytes(2 * PAYLOAD_PER_CALL)), BytesMessage(bytes(PAYLOAD_PER_CALL + 1))
    async with opened(inbox_bytes=2 * PAYLOAD_PER_CALL) as (websocket, peer):
        websocket.data_received(wire(peer, full, much, TextMessage("a")))
        assert not await cancelled_after(1, websocket.recv)
        assert await cancelled_after(1, websocket.recv)
        assert await websocket.recv() == much.data
        assert not await cancelled_after(1, websocket.recv)


# A buffer that is used again


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


# The end of the connection


class Abrupt(OneWay):
    """A stream whose end is an error, as TLS has it where the peer ends TCP without a word."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        if not data:
            raise trio.BrokenResourceError("no close_notify came")
        return data


@pytest.mark.parametrize("pings", [10, 1000])
async def test_frames_that_take_several_turns_are_taken_though_the_end_comes_before_their_last(
    pings: int,
) -> None:
    ours, theirs = memory_stream_pair()
    async with opened(streams=(Abrupt(ours), theirs)) as (websocket, peer):
        await peer.send(*[Ping(b"?")] * pings, TextMessage("last"), CloseConnection(1000))
        await theirs.send_eof()
        assert await websocket.recv() == "last"
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()


@pytest.mark.usefixtures("network_of_all")
async def test_messages_that_wait_behind_a_full_inbox_are_taken_when_the_connection_is_lost() -> None:
    async with opened(inbox_messages=4) as (websocket, peer):
        await peer.send(*[TextMessage(str(number)) for number in range(300)], CloseConnection(1000))
        await peer.vanish()
        received = [await websocket.recv()]
        for _ in range(2):
            # The first answer makes the network say that the peer is gone.
            with suppress(ConnectionClosedOK):
                await websocket.send("answer")
            await wait_all_tasks_blocked()
        received.extend([message async for message in websocket])
    assert received == [str(number) for number in range(300)]


async def test_messages_that_may_come_after_a_pause_are_taken_when_the_connection_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with opened(limit_message_rate=10, inbox_messages=1) as (websocket, peer):
        await peer.send(*[TextMessage(str(number)) for number in range(15)])
        await trio.sleep(1)
        await peer.vanish()
        with suppress(ConnectionClosed):
            await websocket.send("This makes the network say that the peer is gone.")
        await wait_all_tasks_blocked()
        assert [await websocket.recv() for _ in range(15)] == [str(number) for number in range(15)]
        assert websocket.close_seen.code == 1006


async def test_of_compressed_messages_as_much_is_taken_as_one_message_may_have() -> None:
    compressor = zlib.compressobj(wbits=-15)
    payload = compressor.compress(bytes(64 * KIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    received = []
    async with opened(per_message_deflate=True, max_message_size=1024 * KIB, inbox_messages=2) as (
        websocket,
        peer,
    ):
        await peer.stream.send_all(frame(BINARY, payload.removesuffix(b"\0\0\xff\xff"), rsv=4) * 40)
        await wait_all_tasks_blocked()
        await peer.vanish()
        await websocket.send("met by nobody")
        await wait_all_tasks_blocked()
        with suppress(ConnectionClosedError):
            while True:
                received.append(await websocket.recv())
    assert received == [bytes(64 * KIB)] * (2 + 1024 // 64)


async def test_of_many_frames_behind_a_full_inbox_so_many_are_taken_when_the_connection_is_lost() -> None:
    async with opened(inbox_messages=1) as (websocket, peer):
        websocket.data_received(wire(peer, *[TextMessage("a")] * (1 + EVENTS_AT_THE_END + 1)))
        await peer.vanish()
        await websocket.send("met by nobody")
        await wait_all_tasks_blocked()
        assert websocket.traffic.messages_received == 1 + EVENTS_AT_THE_END


async def test_who_waits_for_a_message_is_told_of_a_loss_that_is_not_noted_by_a_bug_of_ours(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def fail(protocol: WebSocketProtocol) -> None:
        raise ZeroDivisionError

    async def receive(websocket: WebSocket) -> None:
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()

    async def lose(elsewhere: trio.Nursery) -> None:
        async with opened() as (websocket, _):
            elsewhere.start_soon(receive, websocket)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(WebSocketProtocol, "receive_eof", fail)

    with trio.fail_after(10):
        async with trio.open_nursery() as elsewhere:
            with pytest.raises(ZeroDivisionError):
                await lose(elsewhere)
