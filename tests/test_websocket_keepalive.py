"""Pings find dead peers, and pings of the peer's are answered."""

from __future__ import annotations

import itertools
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.automatic_peer import AutomaticPeer
from tests.helpers import cancelled_after
from tests.websocket_peer import KIB, Peer, close_in, opened, stall
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosedError
from trio_ws_server.protocol.websocket import Ending, State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Unpack

    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket

pytestmark = pytest.mark.usefixtures("network_of_all")

# Keepalive


async def answer_pings(peer: Peer, answered: list[float]) -> None:
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError, AssertionError):
        while True:
            event = await peer.receive()
            if isinstance(event, Ping):
                await peer.send(event.response())
                answered.append(trio.current_time())


async def test_a_peer_is_pinged_at_every_interval_and_kept_while_it_answers(
    autojump_clock: MockClock,
) -> None:
    answered: list[float] = []
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, peer, answered)
        await trio.sleep(70)
        assert answered == [20, 40, 60]
        assert websocket.state is State.OPEN
        nursery.cancel_scope.cancel()


async def test_a_dead_peer_is_found_within_interval_and_timeout(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=15) as (websocket, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_pings, peer, [])
            await trio.sleep(45)
            nursery.cancel_scope.cancel()
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert trio.current_time() == 60 + 15
        assert caught.value.code == 1006
        assert caught.value.sent == Close(1011, "keepalive ping timeout")
        assert websocket.ending is Ending.LOST
        assert isinstance(await peer.receive(), Ping)
        assert await peer.receive() == CloseConnection(1011, "keepalive ping timeout")


async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer):
        for byte in peer.connection.send(TextMessage("x" * 20)):
            await peer.stream.send_all(bytes([byte]))
            await trio.sleep(15)
        last_byte = trio.current_time() - 15
        assert await websocket.recv() == "x" * 20
        assert last_byte > 200
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == last_byte + 20


async def test_silence_is_no_evidence_while_our_own_application_lets_the_inbox_be_full(
    autojump_clock: MockClock,
) -> None:
    async with opened(ping_interval=20, ping_timeout=20, inbox_messages=1) as (websocket, peer):
        for number in range(3):
            await peer.send(TextMessage(str(number)))
        await trio.sleep(1000)
        for number in range(3):
            assert await websocket.recv() == str(number)
        resumed = trio.current_time()
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == resumed + 20


async def test_a_pong_that_waited_behind_a_full_inbox_counts(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20, inbox_messages=1) as (websocket, peer):
        for number in range(3):
            await peer.send(TextMessage(str(number)))
        ping = await peer.receive()
        assert isinstance(ping, Ping)
        await trio.sleep(100)
        await peer.send(ping.response())
        for number in range(3):
            assert await websocket.recv() == str(number)
        resumed = trio.current_time()
        while (event := await peer.receive()) == ping:
            pass
        assert isinstance(event, Ping)
        assert trio.current_time() == resumed + 20


async def test_with_no_timeout_a_silent_peer_is_kept(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=None) as (websocket, peer):
        while trio.current_time() < 10_000:
            assert isinstance(await peer.receive(), Ping)
        assert websocket.state is State.OPEN


async def test_with_no_interval_nothing_is_sent(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=None) as (websocket, peer):
        await trio.sleep(10_000)
        await websocket.send("first")
        assert await peer.receive() == TextMessage("first")


# What is kept from ping to ping to compress with (RFC 7692 section 7.2.1)

TEXT = "worth its compression, " * 4
ours = pytest.mark.parametrize("client", [False, True], ids=["a server's", "a client's"])


class Inflating:
    """A connection of ours that compresses, and its peer, which websockets speaks for."""

    def __init__(self, websocket: WebSocket, stream: trio.abc.Stream, *, client: bool) -> None:
        self.websocket = websocket
        self.peer = AutomaticPeer(stream, client=not client, deflate=True)
        self._stream = stream

    async def unanswered(self) -> bytes:
        """Return what comes next, of which the peer takes no notice."""
        data = bytes(await self._stream.receive_some())
        assert data
        return data

    async def arrival(self) -> int:
        """Have the peer take what comes next, and answer pings; return its size in bytes."""
        data = await self.unanswered()
        await self.peer.take(data)
        return len(data)

    async def send(self, message: str) -> int:
        """Send a message, which must arrive; return the size of its frame in bytes."""
        await self.websocket.send(message)
        size = await self.arrival()
        assert self.peer.received.pop() == message.encode()
        return size


@asynccontextmanager
async def inflating(*, client: bool = False, **options: Unpack[Options]) -> AsyncGenerator[Inflating]:
    options |= {"per_message_deflate": True, "ping_interval": 20}
    async with opened(client=client, **options) as (websocket, peer):
        yield Inflating(websocket, peer.stream, client=client)


@ours
async def test_an_interval_without_compressed_messages_has_the_next_compressed_like_the_first(
    client: bool, autojump_clock: MockClock
) -> None:
    async with inflating(client=client) as connection:
        first = await connection.send(TEXT)
        assert await connection.send(TEXT) < first
        await connection.arrival()
        await connection.send("too small to be compressed")
        await connection.arrival()
        assert trio.current_time() == 40
        assert await connection.send(TEXT) == first
        assert await connection.send(TEXT) < first


@ours
async def test_a_message_in_each_interval_is_compressed_with_what_came_before(
    client: bool, autojump_clock: MockClock
) -> None:
    async with inflating(client=client) as connection:
        first = await connection.send(TEXT)
        for _ in range(3):
            await connection.arrival()
            assert await connection.send(TEXT) < first
        assert trio.current_time() == 60


async def test_a_ping_that_is_repeated_or_the_applications_own_ends_no_interval(
    autojump_clock: MockClock,
) -> None:
    async with inflating(ping_timeout=None) as connection, trio.open_nursery() as nursery:
        first = await connection.send(TEXT)
        for _ in range(2):
            nursery.start_soon(connection.websocket.ping)
            await connection.arrival()
        for _ in range(3):
            await connection.unanswered()
        assert trio.current_time() == 60
        assert await connection.send(TEXT) < first


async def test_a_message_is_right_that_is_compressed_while_pings_are_sent(mock_clock: MockClock) -> None:
    large = random.Random(1).randbytes(1000 * KIB).hex()

    async def slow_turns() -> None:
        while connection.websocket.traffic.messages_sent == 1:
            await trio.lowlevel.checkpoint()
            mock_clock.jump(2)

    async with inflating(ping_timeout=None) as connection, trio.open_nursery() as nursery:
        await connection.send(TEXT)
        nursery.start_soon(connection.websocket.send, large)
        nursery.start_soon(slow_turns)
        for _ in range(3):
            await connection.arrival()
        assert connection.websocket.traffic.messages_sent == 1
        while not connection.peer.received:
            await connection.arrival()
    assert connection.peer.received == [large.encode()]


# Pings and pongs


async def test_every_ping_is_answered_with_its_payload() -> None:
    async with opened() as (_, peer):
        await peer.send(Ping(b"one"), Ping(b""))
        await peer.send(Ping(b"three"))
        assert [await peer.receive() for _ in range(3)] == [
            Pong(b"one"),
            Pong(b""),
            Pong(b"three"),
        ]


async def test_a_ping_is_answered_unless_a_close_came_before_it() -> None:
    async with opened() as (_, peer):
        late = Connection(ConnectionType.CLIENT).send(Ping(b"late"))
        await peer.stream.send_all(
            peer.connection.send(Ping(b"ping")) + peer.connection.send(CloseConnection(1000)) + late
        )
        assert await peer.receive() == Pong(b"ping")
        assert close_in(await peer.receive()) == Close(1000)


async def test_of_a_flood_of_pings_a_peer_that_does_not_read_gets_only_the_latest_answered() -> None:
    async with opened(lockstep=True) as (websocket, peer):
        await stall(websocket, 100 * KIB)
        for number in range(1000):
            await peer.send(Ping(str(number).encode()))
        sent = 0
        while sent < 100 * KIB:
            event = await peer.receive()
            assert isinstance(event, BytesMessage)
            sent += len(event.data)
        assert await peer.receive() == Pong(b"999")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.send, "next")
            assert await peer.receive() == TextMessage("next")


async def test_a_flood_of_pings_fills_the_write_buffer_no_further_than_to_its_high_water_mark() -> None:
    async with opened(lockstep=True, write_high_water=KIB, write_low_water=KIB) as (_, peer):
        for _ in range(1000):
            await peer.send(Ping(bytes(100)))
        pongs = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def count() -> None:
                    nonlocal pongs
                    while True:
                        assert await peer.receive() == Pong(bytes(100))
                        pongs += 1

                nursery.start_soon(count)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert 1 <= pongs <= 12


async def test_a_pong_that_waits_for_room_is_not_sent_behind_a_close_frame() -> None:
    async with opened(lockstep=True) as (websocket, peer):
        await stall(websocket, 100 * KIB)
        await peer.send(Ping(b"ping"))
        await peer.send(CloseConnection(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.receive_all)
        assert peer.events[-1] == CloseConnection(1000, "")
        assert not any(isinstance(event, Pong) for event in peer.events)


async def test_ping_returns_the_seconds_that_the_pong_took(autojump_clock: MockClock) -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            event = await peer.receive()
            assert isinstance(event, Ping)
            await trio.sleep(0.25)
            await peer.send(event.response())

        nursery.start_soon(answer)
        assert await websocket.ping() == 0.25


async def test_a_pong_answers_the_earlier_pings_too(autojump_clock: MockClock) -> None:
    times: dict[str, float] = {}

    async def ping(payload: str) -> None:
        times[payload] = await websocket.ping(payload)

    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        for payload in "one", "two", "three":
            nursery.start_soon(ping, payload)
            assert await peer.receive() == Ping(payload.encode())
            await trio.sleep(1)
        await peer.send(Pong(b"two"))
        await wait_all_tasks_blocked()
        assert times == {"one": 3, "two": 2}
        await peer.send(Pong(b"three"))
    assert times["three"] == 1


async def test_a_pong_that_answers_nothing_is_ignored() -> None:
    async with opened() as (websocket, peer):
        await peer.send(Pong(b"unasked"), TextMessage("next"))
        assert await websocket.recv() == "next"


@pytest.mark.parametrize(
    ("payload", "sent"), [("ä", b"\xc3\xa4"), (b"\x00", b"\x00"), ("", b""), (bytes(125), bytes(125))]
)
async def test_a_ping_carries_the_given_payload(payload: str | bytes, sent: bytes) -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.ping, payload)
        assert await peer.receive() == Ping(sent)
        await peer.send(Pong(sent))


@pytest.mark.parametrize("payload", ["ä" * 63, bytes(126)])
async def test_a_ping_payload_that_is_too_long_is_refused(payload: str | bytes) -> None:
    async with opened() as (websocket, _):
        with pytest.raises(ValueError, match="126 bytes, 125 at most"):
            await websocket.ping(payload)
        assert websocket.state is State.OPEN


async def test_a_payload_that_is_under_way_is_refused_and_after_it_accepted() -> None:
    async with opened() as (websocket, peer):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.ping, b"same")
                await wait_all_tasks_blocked()
                with pytest.raises(ValueError, match="b'same' is still waiting"):
                    await websocket.ping(b"same")
                await peer.send(Pong(b"same"))


async def test_a_payload_can_be_used_again_before_the_first_ping_has_returned() -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.ping, b"same")
        await wait_all_tasks_blocked()
        # What the transport does on a pong, and then at once, before the other task has run, the second ping.
        websocket.data_received(peer.connection.send(Pong(b"same")))
        nursery.start_soon(peer.send, Pong(b"same"))
        await websocket.ping(b"same")


async def test_a_ping_that_is_cancelled_anywhere_harms_nothing() -> None:
    async def answer(peer: Peer) -> None:
        for _ in range(2):
            event = await peer.receive()
            assert isinstance(event, Ping)
            await peer.send(event.response())

    for steps in itertools.count():
        async with opened() as (websocket, peer), trio.open_nursery() as nursery:
            nursery.start_soon(answer, peer)
            cancelled = await cancelled_after(steps, websocket.ping)
            await websocket.ping()
            nursery.cancel_scope.cancel()
        if not cancelled:
            break
    assert steps > 1


@pytest.mark.parametrize("attempt", range(16))
async def test_a_close_just_when_a_ping_is_due_is_only_a_close(
    attempt: int, autojump_clock: MockClock
) -> None:
    # Tasks that are due at the same time run in any order, hence the attempts.
    async with opened(ping_interval=20) as (websocket, peer), trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.sleep_until(20)
            websocket.start_closing(Close(1000))

        nursery.start_soon(close)
        while isinstance(event := await peer.receive(), Ping):
            pass
        assert close_in(event) == Close(1000)


async def test_a_slow_reader_is_not_taken_for_dead_while_our_ping_waits_behind_our_own_data(
    autojump_clock: MockClock,
) -> None:
    async with opened(lockstep=True, ping_interval=20, ping_timeout=20) as (websocket, peer):
        await stall(websocket, 1000 * KIB)
        for _ in range(1000 // 16):
            assert await peer.stream.receive_some()
            await trio.sleep(10)
        assert websocket.state is State.OPEN
        await peer.vanish()


async def test_who_waits_to_send_is_told_of_a_dead_peer_when_it_is_found(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, ping_interval=20, ping_timeout=15, write_timeout=1000) as (websocket, _):
        with pytest.raises(ConnectionClosedError):
            await websocket.send(bytes(100 * KIB))
        assert trio.current_time() == 35


async def test_a_pong_that_has_been_read_and_waits_for_its_turn_counts(mock_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer), trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        mock_clock.jump(20)
        ping = await peer.receive()
        assert isinstance(ping, Ping)
        await peer.send(*[Pong(b"other")] * 3000, ping.response(), TextMessage("last"))

        async def slow_turns() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                mock_clock.jump(0.5)

        nursery.start_soon(slow_turns)
        assert await websocket.recv() == "last"
        nursery.cancel_scope.cancel()


async def test_pings_given_up_on_do_not_pile_up(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, write_timeout=10**6) as (websocket, peer):
        await stall(websocket, 100 * KIB)
        for _ in range(100):
            with trio.move_on_after(1):
                await websocket.ping()
        taken = sum([len(await peer.stream.receive_some()) for _ in range(7)])
        assert taken < 101 * KIB
        await peer.vanish()
