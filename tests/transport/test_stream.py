"""The transport over a stream: what is written arrives whole, and every wait has an end."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.abc import HalfCloseableStream
from trio.testing import (
    assert_no_checkpoints,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from tests.helpers import OneWay, Recorder, read_all
from trio_ws_server.config import Config
from trio_ws_server.transport import open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trio.abc import Stream

    from trio_ws_server.transport import Transport

KIB = 1024
CONFIG = Config(write_high_water=64 * KIB, write_low_water=16 * KIB, write_timeout=30)


@asynccontextmanager
async def recorded(stream: Stream, config: Config = CONFIG) -> AsyncGenerator[tuple[Transport, Recorder]]:
    """Run a transport over the stream."""
    async with open_engine() as engine, open_transport(stream, config, engine) as transport:
        transport.receiver = recorder = Recorder()
        yield transport, recorder


class Line:
    """A transport, what its receiver was told, and the stream of the peer at the other end."""

    def __init__(self, transport: Transport, recorder: Recorder, peer: Stream) -> None:
        self.transport = transport
        self.recorder = recorder
        self.peer = peer

    # Methods, since mypy takes a property to stay what an assertion said of it.

    def congested(self) -> bool:
        return self.transport.congested

    def lost(self) -> bool:
        return self.transport.lost

    async def peer_reads(self, count: int) -> bytes:
        """Let the peer take so many bytes."""
        taken = b""
        while len(taken) < count:
            data = await self.peer.receive_some(count - len(taken))
            assert data, "the end came too early"
            taken += data
        return taken

    async def peer_reads_all(self) -> bytes:
        """Let the peer take everything up to the end."""
        return await read_all(self.peer)


@asynccontextmanager
async def line(config: Config = CONFIG, *, buffered: bool = False) -> AsyncGenerator[Line]:
    """
    Run a transport to a peer that takes only what it asks for, the network holding nothing.

    With ``buffered``, the network takes everything. At the end, the transport has closed its stream.
    """
    pair: Callable[[], tuple[Stream, Stream]] = memory_stream_pair if buffered else lockstep_stream_pair
    ours, theirs = pair()
    async with recorded(ours, config) as (transport, recorder):
        yield Line(transport, recorder, theirs)
    assert transport.lost
    await theirs.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


# Receiving


async def test_the_receiver_gets_what_arrives_and_then_the_end() -> None:
    async with line(buffered=True) as it:
        await it.peer.send_all(b"one")
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"one", [])
        await it.peer.send_all(b" two")
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"one two", ["eof"])
        assert not it.lost()


async def test_after_the_peers_end_it_still_gets_what_is_written() -> None:
    async with line(buffered=True) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        it.transport.write(b"response")
        assert await it.peer_reads(8) == b"response"


async def test_while_reading_is_paused_no_more_than_a_piece_on_its_way_arrives() -> None:
    async with line(buffered=True) as it:
        await wait_all_tasks_blocked()
        it.transport.pause_reading()
        for piece in b"one ", b"two ", b"three":
            await it.peer.send_all(piece)
            await wait_all_tasks_blocked()
        assert it.recorder.data == b"one "
        it.transport.resume_reading()
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"one two three"


async def test_another_receiver_can_take_over() -> None:
    async with line(buffered=True) as it:
        await it.peer.send_all(b"for the first")
        await wait_all_tasks_blocked()
        second = it.transport.receiver = Recorder()
        await it.peer.send_all(b"for the second")
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"for the first"
        assert second.data == b"for the second"


# Writing


@given(pieces=st.lists(st.binary(max_size=200 * KIB), max_size=8), pauses=st.lists(st.booleans(), min_size=8))
async def test_any_pieces_arrive_whole_and_in_order(pieces: list[bytes], pauses: list[bool]) -> None:
    async with line(buffered=True) as it:
        for piece, pause in zip(pieces, pauses, strict=False):
            it.transport.write(piece)
            if pause:
                await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.transport.shutdown, 1)
            assert await it.peer_reads_all() == b"".join(pieces)
            await it.peer.aclose()


async def test_a_peer_that_reads_late_gets_everything() -> None:
    async with line() as it:
        for _ in range(1000):
            it.transport.write(bytes(KIB))
        await wait_all_tasks_blocked()
        assert await it.peer_reads(1000 * KIB) == bytes(1000 * KIB)


async def test_a_sender_waits_from_above_the_high_water_mark_down_to_the_low_one() -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(64 * KIB))
        assert not it.congested()
        with assert_no_checkpoints():
            await it.transport.drain()
        it.transport.write(bytes(128 * KIB))
        assert it.congested()
        nursery.start_soon(it.transport.drain)
        await it.peer_reads(128 * KIB)
        await wait_all_tasks_blocked()
        assert it.congested()
        assert nursery.child_tasks
        await it.peer_reads(64 * KIB)
        await wait_all_tasks_blocked()
        assert not it.congested()
        assert not nursery.child_tasks
        assert it.recorder.events == ["writable again"]


async def test_room_is_announced_once_for_each_congestion() -> None:
    async with line() as it:
        for _ in range(2):
            it.transport.write(bytes(200 * KIB))
            await it.peer_reads(200 * KIB)
            await wait_all_tasks_blocked()
        assert it.recorder.events == ["writable again"] * 2


async def test_a_cancelled_wait_for_room_leaves_what_was_written_to_be_sent() -> None:
    async with line() as it:
        it.transport.write(bytes(100 * KIB))
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.transport.drain()
        assert scope.cancelled_caught
        assert await it.peer_reads(100 * KIB) == bytes(100 * KIB)


# The write timeout


async def test_a_peer_that_takes_nothing_is_dropped_after_the_write_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it:
        started = trio.current_time()
        it.transport.write(b"data")
        await trio.sleep(29)
        assert not it.lost()
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert it.lost()
        assert it.recorder.events == ["lost"]
        assert trio.current_time() == started + 30


async def test_who_waits_for_room_goes_on_when_the_peer_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it:
        it.transport.write(bytes(100 * KIB))
        await it.transport.drain()
        assert it.lost()
        assert trio.current_time() == 30


async def test_a_peer_is_not_dropped_while_there_is_nothing_to_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it:
        it.transport.write(b"data")
        await it.peer_reads(4)
        await trio.sleep(1000)
        assert not it.lost()


async def test_a_slow_peer_that_keeps_taking_is_not_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with line() as it:
        it.transport.write(bytes(160 * KIB))
        for _ in range(10):
            await trio.sleep(29)
            await it.peer_reads(16 * KIB)
        assert not it.lost()


async def test_a_peer_is_not_dropped_while_its_socket_takes_anything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.socket.socketpair()
    near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 8 * KIB)
    theirs = trio.SocketStream(far)
    async with recorded(trio.SocketStream(near)) as (transport, recorder), theirs:
        transport.write(bytes(1000 * KIB))
        for _ in range(20):
            await trio.sleep(29)
            assert await theirs.receive_some()
        assert recorder.events == []
        await trio.sleep(31)
        assert recorder.events == ["lost"]


async def test_a_reset_ends_a_transport_over_a_socket() -> None:
    near, far = trio.socket.socketpair()
    async with recorded(trio.SocketStream(near)) as (transport, recorder):
        transport.write(b"unread")
        await wait_all_tasks_blocked()
        far.close()
        transport.write(b"more")
        await wait_all_tasks_blocked()
        assert recorder.events[-1] == "lost"


# Waiting for what was written to be taken


async def test_a_flush_waits_for_what_was_written_before_it_and_not_for_what_comes_after() -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(32 * KIB))
        nursery.start_soon(it.transport.flush, 60)
        await wait_all_tasks_blocked()
        it.transport.write(bytes(32 * KIB))
        await it.peer_reads(16 * KIB)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await it.peer_reads(16 * KIB)
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_a_flush_gives_up_on_a_peer_that_takes_nothing_but_not_on_a_slow_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(48 * KIB))
        nursery.start_soon(it.peer_reads, 16 * KIB)
        assert not await it.transport.flush(10)
        assert trio.current_time() == 10
        for _ in range(2):
            await trio.sleep(9)
            nursery.start_soon(it.peer_reads, 16 * KIB)
        assert await it.transport.flush(10)


async def test_a_flush_of_a_connection_that_is_lost_says_so_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(48 * KIB))
        nursery.start_soon(it.peer.aclose)
        assert not await it.transport.flush(10)
        assert trio.current_time() == 0


# Ending


async def test_shutdown_sends_what_is_buffered_and_waits_for_the_peers_end() -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(200 * KIB))
        nursery.start_soon(it.transport.shutdown, 5)
        assert await it.peer_reads_all() == bytes(200 * KIB)
        await wait_all_tasks_blocked()
        assert not it.lost()
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert it.lost()
        assert it.recorder.events == ["writable again", "eof", "lost"]


async def test_shutdown_drops_what_still_arrives_even_where_reading_was_paused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.pause_reading()
        nursery.start_soon(it.transport.shutdown, 5)
        await it.peer.send_all(bytes(100 * KIB))
        await it.peer.send_all(bytes(100 * KIB))
        assert it.recorder.data == b""
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert it.lost()
        assert trio.current_time() == 0


async def test_shutdown_waits_for_the_peers_end_no_longer_than_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(buffered=True) as it:
        it.transport.write(b"last words")
        await it.transport.shutdown(5)
        assert trio.current_time() == 5
        assert await it.peer_reads_all() == b"last words"


async def test_a_peer_that_keeps_sending_gets_the_last_words_and_their_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(buffered=True) as it, trio.open_nursery() as nursery:

        async def flood() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await it.peer.send_all(bytes(KIB))
                    await trio.sleep(0.1)

        nursery.start_soon(flood)
        await trio.sleep(1)
        it.transport.write(b"last words")
        await it.transport.shutdown(5)
        assert trio.current_time() == 6
        assert await it.peer_reads_all() == b"last words"


async def test_shutdown_of_a_stalled_peer_ends_with_the_write_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line() as it:
        it.transport.write(b"data")
        await it.transport.shutdown(5)
        assert trio.current_time() == 30


async def test_shutdown_after_the_peers_end_does_not_linger(autojump_clock: trio.testing.MockClock) -> None:
    async with line(buffered=True) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        await it.transport.shutdown(5)
        assert trio.current_time() == 0
        assert it.recorder.events == ["eof", "lost"]


async def test_cancelling_shutdown_drops_the_connection() -> None:
    async with line() as it:
        it.transport.write(b"data")
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.transport.shutdown(5)
        assert scope.cancelled_caught
        assert it.lost()


async def test_abort_drops_what_is_buffered_and_tells_the_receiver_once() -> None:
    async with line() as it:
        it.transport.write(bytes(100 * KIB))
        it.transport.abort()
        it.transport.abort()
        assert it.lost()
        assert not it.congested()
        assert it.recorder.events == ["lost"]
        with assert_no_checkpoints():
            await it.transport.drain()
        it.transport.write(bytes(100 * KIB))
        assert not it.congested()
        await it.transport.shutdown(5)


async def test_what_arrives_in_the_moment_of_an_abort_is_not_handed_on() -> None:
    async with line(buffered=True) as it:
        await it.peer.send_all(b"late")
        it.transport.abort()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"", ["lost"])


@pytest.mark.parametrize("direction", ["send_stream", "receive_stream"])
async def test_a_broken_stream_is_a_lost_connection(direction: str) -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise trio.BrokenResourceError

    ours.send_stream.send_all_hook = break_ if direction == "send_stream" else None
    ours.receive_stream.receive_some_hook = break_ if direction == "receive_stream" else None
    async with recorded(ours) as (transport, recorder):
        transport.write(b"data")
        await wait_all_tasks_blocked()
        assert transport.lost
        assert recorder.events == ["lost"]
    await theirs.aclose()


async def test_cancelling_the_block_is_a_lost_connection_for_whoever_still_holds_the_transport() -> None:
    with trio.CancelScope() as scope:
        async with line() as it:
            it.transport.write(bytes(100 * KIB))
            scope.cancel()
            await trio.sleep_forever()
    assert it.lost()
    assert it.recorder.events == ["lost"]
    with assert_no_checkpoints():
        await it.transport.drain()
    with pytest.raises(trio.BrokenResourceError):
        await it.peer.send_all(b"data")


async def test_a_stream_that_cannot_end_one_side_is_closed_as_a_whole() -> None:
    ours, theirs = memory_stream_pair()
    async with recorded(OneWay(ours)) as (transport, recorder):
        transport.write(b"last words")
        await transport.shutdown(5)
        assert recorder.events == ["lost"]
    assert await theirs.receive_some() == b"last words"
    assert await theirs.receive_some() == b""


class FaultyReceiver(Recorder):
    def data_received(self, data: bytes) -> None:
        raise KeyError("a bug")


async def test_an_error_that_no_stream_should_raise_comes_out_and_closes_it() -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise KeyError("a bug")

    ours.send_stream.send_all_hook = break_
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with recorded(ours) as (transport, recorder):
            transport.write(b"data")
            await trio.sleep_forever()
    assert transport.lost
    assert recorder.events == ["lost"]
    await theirs.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


async def test_such_an_error_comes_out_of_a_body_that_ends_with_the_connection_too() -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise KeyError("a bug")

    ours.receive_stream.receive_some_hook = break_
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with recorded(ours) as (_, recorder):
            while not recorder.events:
                await trio.lowlevel.checkpoint()
    await theirs.aclose()


async def test_an_error_out_of_the_receiver_comes_out_and_closes_the_stream() -> None:
    ours, theirs = memory_stream_pair()
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with open_engine() as engine, open_transport(ours, CONFIG, engine) as transport:
            transport.receiver = FaultyReceiver()
            await theirs.send_all(b"data")
            await trio.sleep_forever()
    await theirs.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()
