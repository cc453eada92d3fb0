"""Transports over every network: what is written arrives whole, and every wait has an end."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.abc import HalfCloseableStream
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from tests.helpers import Recorder
from tests.transport.lines import CONFIG, KIB, Line, line, networks, socket_networks
from trio_ws_server.transport import open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.networks import Network

# Receiving


@networks
async def test_the_receiver_gets_what_arrives_and_then_the_end(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await it.peer.send_all(b"one")
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"one", [])
        await it.peer.send_all(b" two")
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"one two", ["eof"])
        assert not it.lost()


@networks
async def test_after_the_peers_end_it_still_gets_what_is_written(network: Network) -> None:
    async with line(network, buffered=True) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        it.transport.write(b"response")
        assert await it.peer_reads(8) == b"response"


@networks
async def test_another_receiver_can_take_over(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await it.peer.send_all(b"for the first")
        await wait_all_tasks_blocked()
        second = it.transport.receiver = Recorder()
        await it.peer.send_all(b"for the second")
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"for the first"
        assert second.data == b"for the second"


@networks
async def test_while_reading_is_paused_no_more_than_a_piece_on_its_way_arrives(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await wait_all_tasks_blocked()
        it.transport.pause_reading()
        for piece in b"one ", b"two ", b"three":
            await it.peer.send_all(piece)
            await wait_all_tasks_blocked()
        assert it.recorder.data in (b"", b"one ")
        it.transport.resume_reading()
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"one two three"


@networks
async def test_the_peers_end_is_seen_once_however_often_reading_is_paused_after_it(network: Network) -> None:
    async with line(network) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        it.transport.write(bytes(100 * KIB))
        for _ in range(2):
            await wait_all_tasks_blocked()
            it.transport.pause_reading()
            await wait_all_tasks_blocked()
            it.transport.resume_reading()
        assert await it.peer_reads(100 * KIB) == bytes(100 * KIB)
        await wait_all_tasks_blocked()
        assert it.recorder.events == ["eof", "writable again"]


@networks
async def test_the_peers_end_waits_while_reading_is_paused(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await wait_all_tasks_blocked()
        it.transport.pause_reading()
        await it.peer.send_all(b"last words")
        await wait_all_tasks_blocked()
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        assert it.recorder.events == []
        it.transport.resume_reading()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"last words", ["eof"])


class Answering(Recorder):
    """A receiver that does something to its transport when something arrives."""

    def __init__(self, answer: Callable[[], None]) -> None:
        super().__init__()
        self._answer = answer

    def data_received(self, data: bytes | memoryview) -> None:
        super().data_received(data)
        self._answer()

    def eof_received(self) -> None:
        super().eof_received()
        self._answer()


@networks
async def test_what_arrives_can_be_answered_with_an_abort(network: Network) -> None:
    async with line(network, buffered=True) as it:
        recorder = it.transport.receiver = Answering(it.transport.abort)
        await it.peer.send_all(b"one")
        await wait_all_tasks_blocked()
        with suppress(trio.BrokenResourceError):
            await it.peer.send_all(b"two")
        await wait_all_tasks_blocked()
        assert (recorder.data, recorder.events) == (b"one", ["lost"])


@networks
async def test_what_arrives_can_be_answered_at_once_and_the_peers_end_too(network: Network) -> None:
    async with line(network, buffered=True) as it:
        it.transport.receiver = Answering(lambda: it.transport.write(b"answer"))
        await it.peer.send_all(b"one")
        assert await it.peer_reads(6) == b"answer"
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        assert await it.peer_reads(6) == b"answer"


@networks
async def test_reading_can_be_paused_and_resumed_while_something_arrives(network: Network) -> None:
    def pause_and_resume() -> None:
        it.transport.pause_reading()
        it.transport.resume_reading()

    async with line(network, buffered=True) as it:
        recorder = it.transport.receiver = Answering(pause_and_resume)
        for _ in range(3):
            await it.peer.send_all(b"piece")
            await wait_all_tasks_blocked()
        assert recorder.data == b"piece" * 3


# Writing


@networks
@given(pieces=st.lists(st.binary(max_size=200 * KIB), max_size=8), pauses=st.lists(st.booleans(), min_size=8))
async def test_any_pieces_arrive_whole_and_in_order(
    network: Network, pieces: list[bytes], pauses: list[bool]
) -> None:
    async with line(network, buffered=True) as it:
        for piece, pause in zip(pieces, pauses, strict=False):
            it.transport.write(piece)
            if pause:
                await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.transport.shutdown, 1)
            assert await it.peer_reads_all() == b"".join(pieces)
            await it.peer.aclose()


@networks
async def test_a_peer_that_reads_late_gets_everything(network: Network) -> None:
    async with line(network) as it:
        for _ in range(1000):
            it.transport.write(bytes(KIB))
        await wait_all_tasks_blocked()
        assert await it.peer_reads(1000 * KIB) == bytes(1000 * KIB)


@networks
async def test_a_sender_waits_from_above_the_high_water_mark_down_to_the_low_one(network: Network) -> None:
    async with line(network) as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(64 * KIB))
        assert not it.congested()
        with assert_no_checkpoints():
            await it.transport.drain()
        it.transport.write(bytes(128 * KIB))
        assert it.congested()
        nursery.start_soon(it.transport.drain)
        seen = set()
        for _ in range(192):
            await wait_all_tasks_blocked()
            assert it.congested() == (it.unsent() > 16 * KIB)
            assert it.congested() == bool(nursery.child_tasks)
            assert it.recorder.events == ["writable again"] * (not it.congested())
            seen.add((it.congested(), it.unsent() > 0))
            await it.peer_reads(KIB)
        assert seen >= {(True, True), (False, True)}


@networks
async def test_room_is_announced_once_for_each_congestion(network: Network) -> None:
    async with line(network) as it:
        for _ in range(2):
            it.transport.write(bytes(200 * KIB))
            await it.peer_reads(200 * KIB)
            await wait_all_tasks_blocked()
        assert it.recorder.events == ["writable again"] * 2


@networks
async def test_a_cancelled_wait_for_room_leaves_what_was_written_to_be_sent(network: Network) -> None:
    async with line(network) as it:
        it.transport.write(bytes(100 * KIB))
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.transport.drain()
        assert scope.cancelled_caught
        assert await it.peer_reads(100 * KIB) == bytes(100 * KIB)


# The write timeout


@networks
async def test_a_peer_that_takes_nothing_is_dropped_after_the_write_timeout(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network) as it:
        started = trio.current_time()
        it.transport.write(b"data")
        await trio.sleep(29)
        assert not it.lost()
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert it.lost()
        assert it.recorder.events == ["lost"]
        assert trio.current_time() == started + 30


@networks
async def test_who_waits_for_room_goes_on_when_the_peer_is_dropped(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network) as it:
        it.transport.write(bytes(100 * KIB))
        await it.transport.drain()
        assert it.lost()
        assert trio.current_time() == 30


@networks
async def test_a_peer_is_not_dropped_while_there_is_nothing_to_send(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network) as it:
        it.transport.write(b"data")
        await it.peer_reads(4)
        await trio.sleep(1000)
        assert not it.lost()


@networks
async def test_a_slow_peer_that_keeps_taking_is_not_dropped(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async with line(network) as it:
        it.transport.write(bytes(160 * KIB))
        for _ in range(10):
            await trio.sleep(29)
            await it.peer_reads(16 * KIB)
        assert not it.lost()


@socket_networks
async def test_a_peer_is_not_dropped_while_its_socket_takes_anything(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async with line(network) as it:
        it.transport.write(bytes(1000 * KIB))
        for _ in range(20):
            await trio.sleep(29)
            assert await it.peer.receive_some()
        assert it.recorder.events == []
        await trio.sleep(31)
        assert it.recorder.events == ["lost"]


@socket_networks
async def test_a_peer_that_closes_with_data_unread_is_lost(network: Network) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write(b"unread")
        await wait_all_tasks_blocked()
        await it.peer.aclose()
        it.transport.write(b"more")
        await wait_all_tasks_blocked()
        assert it.recorder.events[-1] == "lost"


@networks
async def test_large_and_small_pieces_arrive_in_order_whether_they_are_held_or_not(network: Network) -> None:
    async with line(network) as it:
        expected = b""
        for number in range(40):
            piece = b"%d " % number * (10_000 if number % 2 else 1)
            expected += piece
            (it.transport.write_soon if number % 3 else it.transport.write)(piece)
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()
        assert await it.peer_reads(len(expected)) == expected


# How far the peer is


@networks
async def test_what_was_written_before_has_been_taken_whatever_comes_after(network: Network) -> None:
    async with line(network) as it:
        it.transport.write(bytes(32 * KIB))
        mark = it.transport.written
        it.transport.write(bytes(32 * KIB))
        await it.peer_reads(16 * KIB)
        await wait_all_tasks_blocked()
        it.transport.see_taken()
        assert it.transport.taken < mark
        await it.peer_reads(16 * KIB)
        await wait_all_tasks_blocked()
        it.transport.see_taken()
        assert it.transport.taken >= mark


# Ending


@networks
async def test_an_end_waits_for_the_peers_and_drops_what_comes_before_it(network: Network) -> None:
    async with line(network, buffered=True) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        it.transport.write(b"last words")
        it.transport.end()
        it.transport.end()
        assert await it.peer_reads_all() == b"last words"
        await it.peer.send_all(b"too late")
        await wait_all_tasks_blocked()
        assert not it.lost()
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        assert it.lost()
        assert it.recorder.data == b""
        assert it.recorder.events == ["eof", "lost"]


@networks
async def test_an_end_waits_for_a_slow_peer_to_take_all(network: Network) -> None:
    async with line(network) as it:
        it.transport.write(bytes(100 * KIB))
        it.transport.end()
        await wait_all_tasks_blocked()
        assert it.unsent()
        assert await it.peer_reads_all() == bytes(100 * KIB)
        assert not it.lost()


@networks
async def test_shutdown_sends_what_is_buffered_and_waits_for_the_peers_end(network: Network) -> None:
    async with line(network) as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(200 * KIB))
        nursery.start_soon(it.transport.shutdown, 5)
        assert await it.peer_reads_all() == bytes(200 * KIB)
        await wait_all_tasks_blocked()
        assert not it.lost()
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert it.lost()
        assert it.recorder.events == ["writable again", "eof", "lost"]


@networks
async def test_shutdown_drops_what_still_arrives_even_where_reading_was_paused(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network) as it, trio.open_nursery() as nursery:
        it.transport.pause_reading()
        nursery.start_soon(it.transport.shutdown, 5)
        await it.peer.send_all(bytes(100 * KIB))
        await it.peer.send_all(bytes(100 * KIB))
        assert it.recorder.data == b""
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert it.lost()
        assert trio.current_time() == 0


@networks
async def test_shutdown_waits_for_the_peers_end_no_longer_than_told(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write(b"last words")
        await it.transport.shutdown(5)
        assert trio.current_time() == 5
        assert await it.peer_reads_all() == b"last words"


@networks
async def test_a_peer_that_keeps_sending_gets_the_last_words_and_their_end(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network, buffered=True) as it, trio.open_nursery() as nursery:

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


@networks
async def test_shutdown_of_a_stalled_peer_ends_with_the_write_timeout(
    network: Network,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with line(network) as it:
        it.transport.write(b"data")
        await it.transport.shutdown(5)
        assert trio.current_time() == 30


@networks
async def test_shutdown_after_the_peers_end_does_not_linger(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async with line(network, buffered=True) as it:
        assert isinstance(it.peer, HalfCloseableStream)
        await it.peer.send_eof()
        await wait_all_tasks_blocked()
        await it.transport.shutdown(5)
        assert trio.current_time() == 0
        assert it.recorder.events == ["eof", "lost"]


@networks
async def test_what_is_written_after_the_end_is_not_sent(network: Network) -> None:
    async with line(network) as it:
        it.transport.write(b"before")
        it.transport.end()
        it.transport.write(b"after")
        it.transport.write_soon(b"after")
        assert await it.peer_reads_all() == b"before"


@networks
async def test_cancelling_shutdown_drops_the_connection(network: Network) -> None:
    async with line(network) as it:
        it.transport.write(b"data")
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.transport.shutdown(5)
        assert scope.cancelled_caught
        assert it.lost()


@networks
async def test_abort_drops_what_is_buffered_and_tells_the_receiver_once(network: Network) -> None:
    async with line(network) as it:
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


@networks
async def test_what_arrives_in_the_moment_of_an_abort_is_not_handed_on(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await it.peer.send_all(b"late")
        it.transport.abort()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"", ["lost"])


@networks
async def test_cancelling_the_block_is_a_lost_connection_for_whoever_still_holds_the_transport(
    network: Network,
) -> None:
    with trio.CancelScope() as scope:
        async with line(network) as it:
            it.transport.write(bytes(100 * KIB))
            scope.cancel()
            await trio.sleep_forever()
    assert it.lost()
    assert it.recorder.events == ["lost"]
    with assert_no_checkpoints():
        await it.transport.drain()
    with pytest.raises(trio.BrokenResourceError):
        await it.peer.send_all(b"data")
    await it.peer.aclose()


# Errors that nobody foresaw


def raise_(message: str) -> NoReturn:
    raise KeyError(message)


class FaultyReceiver(Recorder):
    def data_received(self, data: bytes | memoryview) -> None:
        raise_("a bug")


async def fail_in_receiving(it: Line) -> None:
    it.transport.receiver = FaultyReceiver()
    await it.peer.send_all(b"data")


async def fail_in_a_task(it: Line) -> None:
    async def task() -> None:
        raise_("a bug")

    it.transport.start_soon(task)


async def fail_at_a_time(it: Line) -> None:
    it.transport.call_at(trio.current_time(), lambda: raise_("a bug"))


FAILURES = [fail_in_receiving, fail_in_a_task, fail_at_a_time]


@networks
@pytest.mark.parametrize("fail", FAILURES)
async def test_an_error_ends_its_connection_and_comes_out_of_its_block(
    network: Network, fail: Callable[[Line], Awaitable[None]]
) -> None:
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True, allow_unwrapped=True):
        async with line(network, buffered=True) as it:
            await fail(it)
            await trio.sleep_forever()
    assert it.lost()
    # Over TLS an end without an announcement is not taken for one.
    with suppress(trio.BrokenResourceError):
        assert await it.peer_reads_all() == b""
    await it.peer.aclose()


@networks
@pytest.mark.parametrize("fail", FAILURES)
async def test_an_error_ends_no_other_connection(
    network: Network, fail: Callable[[Line], Awaitable[None]]
) -> None:
    (ours, theirs), (others, its_peers) = network.pair(full=False), network.pair(full=False)
    with network.used():
        async with open_engine() as engine, open_transport(others, CONFIG, engine) as other:
            other.receiver = recorder = Recorder()
            with pytest.RaisesGroup(KeyError, flatten_subgroups=True, allow_unwrapped=True):
                async with open_transport(ours, CONFIG, engine) as transport:
                    await fail(Line(transport, Recorder(), theirs))
                    await trio.sleep_forever()
            await its_peers.send_all(b"still here")
            await wait_all_tasks_blocked()
            assert recorder.data == b"still here"
    for peer in theirs, its_peers:
        await peer.aclose()


@networks
async def test_an_error_of_the_block_and_one_of_the_connection_come_out_together(network: Network) -> None:
    with pytest.RaisesGroup(KeyError, ValueError, flatten_subgroups=True):
        async with line(network, buffered=True) as it:
            try:
                await fail_in_receiving(it)
                await trio.sleep_forever()
            finally:
                raise ValueError("another bug")
    await it.peer.aclose()


@networks
async def test_an_error_of_the_block_in_a_group_and_one_of_the_connection_come_out_together(
    network: Network,
) -> None:
    async def clean_up_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("another bug")

    with pytest.RaisesGroup(KeyError, ValueError, flatten_subgroups=True):
        async with line(network, buffered=True) as it, trio.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            await fail_in_receiving(it)
    await it.peer.aclose()


@networks
async def test_an_error_of_the_loss_itself_comes_out_too(network: Network) -> None:
    class FaultyAtTheEnd(Recorder):
        def connection_lost(self) -> None:
            raise_("a bug")

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True, allow_unwrapped=True):
        async with line(network, buffered=True) as it:
            it.transport.receiver = FaultyAtTheEnd()
    assert it.lost()
    await it.peer.aclose()


# Tasks and times of a connection


@networks
async def test_a_task_is_cancelled_when_the_connection_is_lost(network: Network) -> None:
    cancelled = False

    async def task() -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled = True

    async with line(network) as it:
        it.transport.start_soon(task)
        await wait_all_tasks_blocked()
        it.transport.abort()
        await wait_all_tasks_blocked()
        assert cancelled


@networks
async def test_the_block_ends_when_the_tasks_have_ended_or_after_a_second(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    async def clean_up(seconds: float) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    for seconds, expected in (0.5, 0.5), (10, 1):
        ours, theirs = network.pair(full=False)
        with network.used():
            async with open_engine() as engine:
                async with open_transport(ours, CONFIG, engine) as transport:
                    transport.start_soon(partial(clean_up, seconds))
                    await wait_all_tasks_blocked()
                    started = trio.current_time()
                assert trio.current_time() == started + expected
        await theirs.aclose()


@networks
async def test_what_is_due_after_the_connection_is_lost_is_not_done(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    done: list[float] = []
    async with line(network) as it:
        for due in 5.0, 15.0:
            it.transport.call_at(due, partial(done.append, due))
        await trio.sleep(10)
        it.transport.abort()
        await trio.sleep(10)
    assert done == [5]


@networks
async def test_of_a_connection_that_is_lost_nothing_is_kept_until_what_it_had_to_do_is_due(
    network: Network,
) -> None:
    ours, theirs = network.pair(full=True)
    with network.used():
        async with open_engine() as engine:
            async with open_transport(ours, CONFIG, engine) as transport:
                transport.receiver = recorder = Recorder()
                kept = weakref.ref(recorder)
                transport.write(bytes(100 * KIB))
                transport.call_at(trio.current_time() + 1000, recorder.eof_received)
                await wait_all_tasks_blocked()
            del transport, recorder
            await wait_all_tasks_blocked()
            gc.collect()
            assert kept() is None
    await theirs.aclose()
