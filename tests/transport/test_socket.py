"""The transport straight on a socket: when bytes leave, and what only sockets and their poller can do."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers import Recorder
from tests.networks import noted_sends
from tests.scheduling import undisturbed_waits
from tests.transport.lines import KIB, Line, line, polled_networks, recorded, socket_networks
from trio_ws_server.config import Config
from trio_ws_server.transport import open_engine, open_transport
from trio_ws_server.transport.socket import HELD_AT_MOST, SENT_BY_ITSELF

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from trio.testing import MockClock

    from tests.networks import Network

# The peer's end


@polled_networks
async def test_the_peers_end_is_told_once_though_its_reset_comes_while_something_is_to_be_sent(
    network: Network,
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with network.used(), socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        listener.close()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with open_engine() as engine, open_transport(stream, Config(), engine) as transport:
            transport.receiver = recorder = Recorder()
            theirs.shutdown(socket.SHUT_WR)
            while recorder.events != ["eof"]:
                await trio.lowlevel.checkpoint()
            transport.write(bytes(16 * KIB * KIB))
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            while "lost" not in recorder.events:
                await trio.lowlevel.checkpoint()
        assert recorder.events == ["eof", "lost"]


# When bytes leave


@pytest.fixture
def sends() -> Iterator[list[bytes]]:
    with noted_sends() as noted:
        yield noted


@polled_networks
async def test_what_is_written_leaves_at_once(network: Network, sends: list[bytes]) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write(b"one")
        it.transport.write(b"two")
        assert sends == [b"one", b"two"]


@polled_networks
async def test_what_is_held_leaves_together_when_all_tasks_have_run(
    network: Network, sends: list[bytes]
) -> None:
    async with line(network, buffered=True) as it:
        await wait_all_tasks_blocked()
        for piece in b"one", b"two", b"three":
            it.transport.write_soon(piece)
        assert sends == []
        await trio.lowlevel.checkpoint()
        assert sends == [b"onetwothree"]


@polled_networks
async def test_what_is_held_leaves_when_it_is_pushed_and_then_no_more(
    network: Network, sends: list[bytes]
) -> None:
    async with line(network, buffered=True) as it:
        for _ in range(2):
            it.transport.write_soon(b"held")
            it.transport.push()
            it.transport.push()
        assert sends == [b"held"] * 2
        await wait_all_tasks_blocked()
        assert sends == [b"held"] * 2


@polled_networks
async def test_what_is_held_leaves_before_what_is_written_after_it(
    network: Network, sends: list[bytes]
) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write_soon(b"first ")
        it.transport.write(b"second")
        assert sends == [b"first second"]


@polled_networks
async def test_what_is_held_leaves_when_it_is_much(network: Network, sends: list[bytes]) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write_soon(bytes(HELD_AT_MOST))
        assert sends == []
        it.transport.write_soon(b"more")
        assert sum(map(len, sends)) == HELD_AT_MOST + 4


@polled_networks
async def test_what_is_held_leaves_with_a_large_write_behind_it_in_one_call(
    network: Network, sends: list[bytes]
) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write_soon(b"head")
        it.transport.write_soon(b"er")
        it.transport.write(bytes(SENT_BY_ITSELF))
        assert sends == [b"header" + bytes(SENT_BY_ITSELF)]


@polled_networks
@pytest.mark.parametrize("first", [1, 6, 7])
async def test_of_what_leaves_in_one_call_the_network_may_take_any_part(
    network: Network, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sendmsg = socket.socket.sendmsg

    def send_little(sock: socket.socket, parts: list[bytes]) -> int:
        return sendmsg(sock, [b"".join(parts)[:first]])

    monkeypatch.setattr(socket.socket, "sendmsg", send_little)
    async with line(network, buffered=True) as it:
        it.transport.write_soon(b"header")
        it.transport.write(b"x" * SENT_BY_ITSELF)
        assert await it.peer_reads(6 + SENT_BY_ITSELF) == b"header" + b"x" * SENT_BY_ITSELF


@polled_networks
async def test_what_is_held_counts_as_unsent_and_a_push_sends_it(
    network: Network, sends: list[bytes]
) -> None:
    async with line(network, buffered=True) as it:
        it.transport.write_soon(b"held")
        assert it.unsent() == 4
        it.transport.push()
        assert it.unsent() == 0
        assert sends == [b"held"]


@polled_networks
async def test_what_is_held_is_sent_before_a_shutdown_ends_our_side(network: Network) -> None:
    async with line(network, buffered=True) as it, trio.open_nursery() as nursery:
        it.transport.write_soon(b"last words")
        nursery.start_soon(it.transport.shutdown, 5)
        assert await it.peer_reads_all() == b"last words"
        await it.peer.aclose()


@polled_networks
async def test_a_full_network_gets_what_was_held_and_written_in_order(network: Network) -> None:
    async with line(network) as it:
        expected = b""
        for number in range(200):
            piece = b"%d " % number * 1000
            expected += piece
            (it.transport.write_soon if number % 3 else it.transport.write)(piece)
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()
        assert it.congested()
        assert await it.peer_reads(len(expected)) == expected


@polled_networks
async def test_what_was_held_congests_when_the_network_does_not_take_it(network: Network) -> None:
    async with line(network, Config(write_high_water=KIB, write_low_water=KIB)) as it:
        it.transport.write_soon(bytes(2 * KIB))
        await wait_all_tasks_blocked()
        assert it.congested()
        await it.peer_reads(2 * KIB)
        await wait_all_tasks_blocked()
        assert it.recorder.events == ["writable again"]


# The write timeout


class Waiting(Recorder):
    """A receiver that lets a test wait for the end, and for the loss, without a deadline of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = trio.Event()
        self.lost = trio.Event()

    def eof_received(self) -> None:
        super().eof_received()
        self.ended.set()

    def connection_lost(self) -> None:
        super().connection_lost()
        self.lost.set()


@polled_networks
async def test_a_held_write_that_blocks_just_after_an_earlier_one_was_looked_after_is_given_up_in_time(
    network: Network, autojump_clock: MockClock
) -> None:
    with undisturbed_waits():
        async with line(network) as it:
            receiver = it.transport.receiver = Waiting()
            it.transport.call_at(30, lambda: it.transport.write_soon(bytes(60 * KIB)))
            it.transport.write(b"first")
            assert await it.peer_reads(5) == b"first"
            await receiver.lost.wait()
            assert trio.current_time() == 60


@polled_networks
async def test_a_held_write_that_nobody_takes_is_given_up_after_the_write_timeout(
    network: Network, autojump_clock: MockClock
) -> None:
    with undisturbed_waits():
        async with line(network) as it:
            receiver = it.transport.receiver = Waiting()
            it.transport.write_soon(b"data")
            await receiver.lost.wait()
            assert trio.current_time() == 30


# Errors of the network


@polled_networks
async def test_who_writes_to_a_peer_that_is_gone_is_not_told_before_the_next_pass(network: Network) -> None:
    async with line(network, buffered=True) as it:
        it.transport.pause_reading()
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        it.transport.write(b"data")
        it.transport.write_soon(b"more")
        it.transport.push()
        assert it.recorder.events == []
        await wait_all_tasks_blocked()
        assert it.recorder.events == ["lost"]


@polled_networks
async def test_the_last_words_of_a_peer_that_has_gone_arrive_even_if_we_write_first(network: Network) -> None:
    async with line(network, buffered=True) as it:
        await it.peer.send_all(b"last words")
        await it.peer.aclose()
        it.transport.write(b"data")
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"last words"
        assert it.recorder.events[-1] == "lost"


@polled_networks
async def test_held_data_for_a_peer_that_is_gone_is_a_lost_connection(
    network: Network, autojump_clock: MockClock
) -> None:
    with undisturbed_waits():
        async with line(network, buffered=True) as it:
            it.transport.pause_reading()
            await it.peer.aclose()
            await wait_all_tasks_blocked()
            it.transport.write_soon(b"data")
            await wait_all_tasks_blocked()
            assert it.recorder.events == ["lost"]


@polled_networks
async def test_a_peer_that_leaves_while_we_neither_read_nor_can_write_is_lost(network: Network) -> None:
    async with line(network) as it:
        it.transport.pause_reading()
        await it.peer.send_all(b"unread")
        it.transport.write(b"unsent")
        await wait_all_tasks_blocked()
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert (it.recorder.data, it.recorder.events) == (b"", ["lost"])


@asynccontextmanager
async def tcp_line(network: Network) -> AsyncGenerator[tuple[Line, Waiting]]:
    """Run a transport to a peer over TCP on this machine, which may take its time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = await trio.open_tcp_stream(*listener.getsockname())
        sock, _ = listener.accept()
    with network.used():
        async with (
            theirs,
            recorded(trio.SocketStream(trio.socket.from_stdlib_socket(sock))) as (transport, _),
        ):
            transport.receiver = receiver = Waiting()
            yield Line(transport, receiver, theirs), receiver


def reset(peer: trio.abc.Stream) -> None:
    """Close the connection as one whose process has died with data unread: by a segment with RST."""
    assert isinstance(peer, trio.SocketStream)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


@socket_networks
async def test_a_reset_is_a_lost_connection(network: Network) -> None:
    async with tcp_line(network) as (it, receiver):
        reset(it.peer)
        await receiver.lost.wait()
        assert it.recorder.events == ["lost"]


@socket_networks
async def test_a_reset_is_met_by_who_writes_even_if_nobody_reads(network: Network) -> None:
    async with tcp_line(network) as (it, receiver):
        it.transport.pause_reading()
        await it.peer.send_all(b"unread")
        it.transport.write(bytes(10_000 * KIB))
        await wait_all_tasks_blocked()
        reset(it.peer)
        await receiver.lost.wait()
        assert it.recorder.events == ["lost"]


@socket_networks
async def test_a_reset_does_not_keep_the_machine_busy_while_nobody_reads(network: Network) -> None:
    async with tcp_line(network) as (it, receiver):
        it.transport.pause_reading()
        await it.peer.send_all(b"unread")
        await wait_all_tasks_blocked()
        reset(it.peer)
        # It would never return.
        await wait_all_tasks_blocked()
        it.transport.resume_reading()
        await receiver.lost.wait()


@socket_networks
async def test_over_tcp_each_side_can_be_ended_by_itself(network: Network) -> None:
    async with tcp_line(network) as (it, receiver), trio.open_nursery() as nursery:
        assert isinstance(it.peer, trio.SocketStream)
        await it.peer.send_all(b"request")
        await it.peer.send_eof()
        await receiver.ended.wait()
        assert it.recorder.data == b"request"
        it.transport.write(bytes(1000 * KIB))
        nursery.start_soon(it.transport.shutdown, 5)
        assert await it.peer_reads_all() == bytes(1000 * KIB)
    assert it.recorder.events[0] == "eof"
