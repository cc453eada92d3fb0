"""When a connection is pinged, and how long its peer has to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import Ping, TextMessage

from tests.networks import SOCKETS
from tests.websocket_peer import KIB, Peer, closed_by_peer_at, opened, stall
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config, Options
from trio_ws_server.errors import ConnectionClosedError
from trio_ws_server.headers import Headers, Request
from trio_ws_server.protocol.websocket import State, WebSocketProtocol
from trio_ws_server.transport import open_engine, open_transport
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from trio.abc import Stream


async def next_ping(peer: Peer) -> tuple[Ping, float]:
    """Return the next ping, and when it came."""
    while not isinstance(event := await peer.receive(), Ping):
        pass
    return event, trio.current_time()


@pytest.mark.parametrize(("interval", "patience"), [(20, 5), (20, 20), (5, 20), (7, 60)])
async def test_the_next_ping_comes_an_interval_after_the_last_answer(
    interval: float, patience: float, autojump_clock: MockClock
) -> None:
    async with opened(ping_interval=interval, ping_timeout=patience) as (_, peer):
        answered = 0.0
        for delay in 0, patience - 1, 0.5, patience - 0.25:
            ping, time = await next_ping(peer)
            assert time == answered + interval
            await trio.sleep(delay)
            await peer.send(ping.response())
            answered = time + delay


@pytest.mark.parametrize(("interval", "patience"), [(20, 5), (20, 20), (5, 20), (7, 60)])
async def test_a_ping_that_is_not_answered_has_its_timeout_whatever_the_interval(
    interval: float, patience: float, autojump_clock: MockClock
) -> None:
    async with opened(ping_interval=interval, ping_timeout=patience) as (websocket, peer):
        ping, _ = await next_ping(peer)
        await peer.send(ping.response())
        _, second = await next_ping(peer)
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == second + patience


@pytest.mark.parametrize("answered", [False, True], ids=["a silent peer", "an answer behind a full inbox"])
async def test_a_ping_whose_answer_tells_nothing_is_repeated_for_whoever_drops_what_seems_idle(
    answered: bool, autojump_clock: MockClock
) -> None:
    options: Options = {"ping_interval": 20}
    options |= {"inbox_messages": 1} if answered else {"ping_timeout": None}
    async with opened(**options) as (websocket, peer):
        if answered:
            await peer.send(TextMessage("unread"))
        pings = []
        for count in range(1, 11):
            ping, time = await next_ping(peer)
            assert time == 20 * count
            pings.append(ping.payload)
            if answered:
                await peer.send(ping.response())
        assert len({*pings}) == 1
        assert websocket.state is State.OPEN


async def test_a_ping_is_not_repeated_for_a_peer_that_takes_nothing(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, ping_interval=20, ping_timeout=None, write_timeout=1000) as (
        websocket,
        peer,
    ):
        await stall(websocket)
        await trio.sleep(500)
        with trio.move_on_after(10):
            while not isinstance(await peer.receive(), Ping):
                pass
        with trio.move_on_after(10) as waited:
            await peer.receive()
        assert waited.cancelled_caught


async def test_pings_that_are_due_at_about_the_same_time_are_sent_at_the_same(
    autojump_clock: MockClock,
) -> None:
    times = set()

    async def be_pinged(opened_at: float) -> None:
        await trio.sleep_until(opened_at)
        async with opened(ping_interval=20) as (_, peer):
            _, time = await next_ping(peer)
            times.add(time)

    async with trio.open_nursery() as nursery:
        for opened_at in 0.01, 0.02, 0.04:
            nursery.start_soon(be_pinged, opened_at)
    assert [*times] == [pytest.approx(20.05)]


async def test_no_second_ping_is_sent_before_the_first_is_answered(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=5, ping_timeout=100) as (_, peer):
        await next_ping(peer)
        with trio.move_on_after(99) as waited:
            await next_ping(peer)
        assert waited.cancelled_caught


async def test_a_pong_that_answers_no_ping_does_not_put_off_the_next(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (_, peer):
        await trio.sleep(15)
        await peer.send(Ping(b"other").response())
        _, time = await next_ping(peer)
        assert time == 20


async def test_a_ping_of_the_applications_own_does_not_stand_for_one_of_the_keepalive(
    autojump_clock: MockClock,
) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer), trio.open_nursery() as nursery:
        await trio.sleep(15)
        nursery.start_soon(websocket.ping, b"own")
        own, _ = await next_ping(peer)
        await peer.send(own.response())
        _, time = await next_ping(peer)
        assert time == 20


async def test_each_byte_puts_the_end_off_by_a_whole_timeout(autojump_clock: MockClock) -> None:
    async with opened(ping_interval=20, ping_timeout=20) as (websocket, peer):
        await trio.sleep(35)
        await peer.send(TextMessage("late"))
        assert await websocket.recv() == "late"
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == 35 + 20


@pytest.mark.parametrize("sockets", [False, True], ids=["memory", "sockets"])
async def test_what_the_peer_takes_counts_up_to_the_ping_and_then_no_more(
    sockets: bool, autojump_clock: MockClock
) -> None:
    # What is sent after the ping may be taken by the kernel of a peer that is dead.
    streams = SOCKETS.pair(full=True) if sockets else None
    options = {"ping_interval": 20.0, "ping_timeout": 20.0, "write_timeout": 10_000.0}
    async with opened(lockstep=True, streams=streams, **options) as (websocket, peer):  # type: ignore[arg-type]
        await stall(websocket, 100 * KIB)
        await trio.sleep(15)
        for _ in range(5):
            await trio.sleep(15)
            await peer.stream.receive_some(16 * KIB)
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        assert trio.current_time() == 15 + 5 * 15 + 20
        await peer.vanish()


async def test_a_ping_behind_unsent_data_is_waited_for_from_when_it_is_taken(
    autojump_clock: MockClock,
) -> None:
    async with opened(lockstep=True, ping_interval=20, ping_timeout=20, write_timeout=10_000) as (
        websocket,
        peer,
    ):
        await stall(websocket, 100 * KIB)
        await trio.sleep(39)
        ping, _ = await next_ping(peer)
        await trio.sleep(19)
        assert websocket.state is State.OPEN
        await peer.send(ping.response())
        _, time = await next_ping(peer)
        assert time == 39 + 19 + 20


async def test_a_close_frame_that_comes_with_the_end_of_the_timeout_is_taken_before_it(
    autojump_clock: MockClock,
) -> None:
    async with closed_by_peer_at(40, ping_interval=20, ping_timeout=20, close_timeout=10) as websocket:
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.received == Close(4000)
        assert trio.current_time() == 40
        await websocket.close()
        assert trio.current_time() == 50


async def test_no_connection_needs_a_task_to_be_kept_alive(autojump_clock: MockClock) -> None:
    config = Config(ping_interval=20, ping_timeout=None)

    async def serve(stream: Stream) -> None:
        async with open_transport(stream, config, engine) as transport:
            protocol = WebSocketProtocol(config, client=False, deflate=None)
            request = Request("/", Headers([]))
            await WebSocket(transport, protocol, config, request=request, subprotocol=None).recv()

    counts = []
    peers = []
    async with open_engine() as engine, trio.open_nursery() as nursery:
        for _ in range(10):
            ours, theirs = SOCKETS.pair(full=False)
            peers.append(theirs)
            nursery.start_soon(serve, ours)
            await wait_all_tasks_blocked()
            counts.append(trio.lowlevel.current_statistics().tasks_living)
        await trio.sleep(21)
        for peer in peers:
            assert await peer.receive_some()
        assert counts == list(range(counts[0], counts[0] + 10))
        assert trio.lowlevel.current_statistics().tasks_living == counts[-1]
        nursery.cancel_scope.cancel()
    for peer in peers:
        await peer.aclose()
