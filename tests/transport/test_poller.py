"""One poller for all sockets: each has its turn, and none harms another."""

from __future__ import annotations

import os
import select
import selectors
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers import Recorder
from tests.networks import (
    MEMORY,
    PORTABLE,
    SOCKETS,
    STREAMS_OVER_SOCKETS,
    TLS_OVER_MEMORY,
    TLS_OVER_SOCKETS,
    Network,
)
from tests.transport.lines import CONFIG, KIB, POLLED_NETWORKS, Line, line, polled_networks
from trio_ws_server.transport import Engine, open_engine, open_transport, poller
from trio_ws_server.transport.poller import PortableSelector, open_selector
from trio_ws_server.transport.socket import SocketTransport
from trio_ws_server.transport.stream import StreamTransport
from trio_ws_server.transport.tls_socket import TLSTransport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio_ws_server.transport import Transport


@asynccontextmanager
async def line_by(engine: Engine, network: Network) -> AsyncGenerator[Line]:
    """Run one more transport by an engine."""
    ours, theirs = network.pair(full=False)
    async with theirs, open_transport(ours, CONFIG, engine) as transport:
        transport.receiver = recorder = Recorder()
        yield Line(transport, recorder, theirs)


@asynccontextmanager
async def lines(network: Network, count: int) -> AsyncGenerator[list[Line]]:
    """Run so many transports by one engine, which does nothing before the first checkpoint."""
    with network.used():
        async with open_engine() as engine, AsyncExitStack() as stack:
            yield [await stack.enter_async_context(line_by(engine, network)) for _ in range(count)]


def send_now(peer: trio.abc.Stream, data: bytes) -> None:
    """Send without a checkpoint what the kernel has room for."""
    assert isinstance(peer, trio.SocketStream)
    with socket.socket(fileno=os.dup(peer.socket.fileno())) as sock:
        sock.setblocking(False)
        assert sock.send(data) == len(data)


all_polled_networks = pytest.mark.parametrize(
    "network", [*POLLED_NETWORKS.values(), TLS_OVER_SOCKETS], ids=[*POLLED_NETWORKS, "TLS over socket"]
)

# Which transport there is


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (MEMORY, StreamTransport),
        (STREAMS_OVER_SOCKETS, StreamTransport),
        (SOCKETS, SocketTransport),
        (PORTABLE, SocketTransport),
        (TLS_OVER_MEMORY, StreamTransport),
        (TLS_OVER_SOCKETS._replace(open_selector=lambda: None), StreamTransport),
        (TLS_OVER_SOCKETS, TLSTransport),
    ],
    ids=[
        "memory",
        "no selector",
        "selector",
        "portable selector",
        "TLS over memory",
        "TLS, no selector",
        "TLS, selector",
    ],
)
async def test_sockets_are_polled_where_there_is_a_selector(network: Network, kind: type[Transport]) -> None:
    async with line(network) as it:
        assert type(it.transport) is kind


def test_without_epoll_it_is_kqueue_and_without_both_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    monkeypatch.setattr(selectors, "KqueueSelector", selectors.PollSelector, raising=False)
    selector = open_selector()
    assert isinstance(selector, PortableSelector)
    selector.close()
    monkeypatch.delattr(selectors, "KqueueSelector")
    assert open_selector() is None


@all_polled_networks
async def test_all_connections_share_one_descriptor(network: Network) -> None:
    def count() -> int:
        return len(os.listdir("/dev/fd"))

    async with lines(network, 1):
        with_one = count()
    async with lines(network, 11):
        assert count() == with_one + 10 * 2


@all_polled_networks
async def test_no_connection_needs_a_task(network: Network) -> None:
    def count() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with lines(network, 1):
        with_one = count()
    async with lines(network, 11) as its:
        for it in its:
            it.transport.write(bytes(1000 * KIB))
            await it.peer.send_all(b"data")
        await wait_all_tasks_blocked()
        assert count() == with_one


# Turns


@polled_networks
async def test_who_floods_keeps_neither_others_nor_tasks_from_their_turns(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "BUFFER_SIZE", KIB)
    monkeypatch.setattr("trio_ws_server.transport.socket.BUFFERS_PER_TURN", 1)
    async with lines(network, 2) as (flooded, other):
        send_now(flooded.peer, bytes(100 * KIB))
        send_now(other.peer, b"message")
        sizes = [0]
        while sizes[-1] < 100 * KIB:
            await trio.lowlevel.checkpoint()
            sizes.append(len(flooded.recorder.data))
            assert bool(other.recorder.data) == bool(flooded.recorder.data)
        # Two turns, where the poller's is the last in one pass of the scheduler and the first in the next.
        assert max(after - before for before, after in pairwise(sizes)) <= 2 * KIB


@polled_networks
async def test_of_what_comes_a_turn_takes_as_much_as_it_may_in_pieces_that_fit_the_buffer(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def data_received(self, data: bytes | memoryview) -> None:
            self.sizes.append(len(data))

    monkeypatch.setattr(poller, "BUFFER_SIZE", KIB)
    monkeypatch.setattr("trio_ws_server.transport.socket.BUFFERS_PER_TURN", 4)
    async with lines(network, 1) as (it,):
        it.transport.receiver = recorder = Counting()
        send_now(it.peer, bytes(10 * KIB))
        turns = set()
        while sum(recorder.sizes) < 10 * KIB:
            await trio.lowlevel.checkpoint()
            turns.add(len(recorder.sizes))
        assert recorder.sizes == [KIB] * 10
        assert turns - {0} <= {4, 8, 10}


@polled_networks
async def test_a_receiver_that_pauses_reading_gets_no_more_of_the_turn(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes | memoryview) -> None:
            super().data_received(data)
            it.transport.pause_reading()

    monkeypatch.setattr(poller, "BUFFER_SIZE", KIB)
    async with lines(network, 1) as (it,):
        it.transport.receiver = recorder = Pausing()
        send_now(it.peer, bytes(10 * KIB))
        await wait_all_tasks_blocked()
        assert len(recorder.data) == KIB


async def test_of_more_that_flood_than_have_room_in_a_turn_each_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poller, "BUFFER_SIZE", KIB)
    monkeypatch.setattr("trio_ws_server.transport.socket.BUFFERS_PER_TURN", 1)
    monkeypatch.setattr(poller, "EVENTS_PER_TURN", 2)
    async with lines(SOCKETS, 5) as its:
        for it in its:
            send_now(it.peer, bytes(20 * KIB))
        sizes = [0]
        while sizes[-1] < 20 * KIB:
            await trio.lowlevel.checkpoint()
            sizes = sorted(len(it.recorder.data) for it in its)
            assert sizes[-1] <= sizes[0] + KIB


@polled_networks
async def test_a_connection_that_another_drops_in_the_same_turn_is_told_nothing_more(
    network: Network,
) -> None:
    class DropsTheOther(Recorder):
        other: Transport

        def data_received(self, data: bytes | memoryview) -> None:
            super().data_received(data)
            self.other.abort()

    async with lines(network, 2) as its:
        receivers = []
        for it, other in zip(its, reversed(its), strict=True):
            receivers.append(DropsTheOther())
            receivers[-1].other = other.transport
            it.transport.receiver = receivers[-1]
            send_now(it.peer, b"data")
        await wait_all_tasks_blocked()
        assert sorted((receiver.data, receiver.events) for receiver in receivers) == [
            (b"", ["lost"]),
            (b"data", []),
        ]


# Errors, and the end


@polled_networks
async def test_an_error_in_sending_what_was_held_ends_its_connection_only(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = socket.socket.send

    def faulty(sock: socket.socket, data: bytes) -> int:
        if data == b"faulty":
            raise KeyError("a bug")
        return sound(sock, data)

    monkeypatch.setattr(socket.socket, "send", faulty)

    async def hold_and_wait(before: Line, after: Line) -> None:
        async with line_by(engine, network) as it:
            before.transport.write_soon(b"held")
            it.transport.write_soon(b"faulty")
            after.transport.write_soon(b"held")
            await trio.sleep_forever()

    with network.used():
        async with (
            open_engine() as engine,
            line_by(engine, network) as before,
            line_by(engine, network) as after,
        ):
            with pytest.raises(KeyError, match="a bug"):
                await hold_and_wait(before, after)
            for it in before, after:
                assert await it.peer_reads(4) == b"held"
                assert not it.lost()


@polled_networks
async def test_when_the_poller_is_cancelled_what_is_held_is_sent_and_all_connections_are_dropped(
    network: Network,
) -> None:
    with trio.CancelScope() as scope:
        async with lines(network, 2) as its:
            await wait_all_tasks_blocked()
            for it in its:
                it.transport.write_soon(b"last words")
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    for it in its:
                        assert await it.peer_reads_all() == b"last words"
    assert [it.recorder.events for it in its] == [["lost"], ["lost"]]


@polled_networks
async def test_an_interrupt_is_no_error_of_a_connection(network: Network) -> None:
    class Interrupted(Recorder):
        def data_received(self, data: bytes | memoryview) -> None:
            raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True, allow_unwrapped=True):
        async with lines(network, 2) as (interrupted, other):
            interrupted.transport.receiver = Interrupted()
            await interrupted.peer.send_all(b"data")
            await trio.sleep_forever()
    assert other.recorder.events == ["lost"]
