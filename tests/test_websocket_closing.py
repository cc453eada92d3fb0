"""A WebSocket connection ends in time, and everyone is told how, whoever ends it in whatever way."""

from __future__ import annotations

import gc
import itertools
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Event, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from tests.helpers import cancelled_after
from tests.networks import MEMORY, SOCKETS, memory_only, without_tls
from tests.websocket_peer import CALLS, KIB, Peer, calls, close_in, closed_by_peer_at, opened, stall
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol.websocket import Ending, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.websocket import WebSocket

pytestmark = pytest.mark.usefixtures("network_of_all")

# The closing handshake


async def end_of(peer: Peer) -> None:
    """Read to the end of our side, to which nothing more may come."""
    assert await peer.receive_all() == []


def state_of(websocket: WebSocket) -> State:
    """Return the state; mypy would take a property to stay what an assertion said of it."""
    return websocket.state


roles = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])


@roles
async def test_closing_sends_a_close_frame_and_waits_for_the_peers_and_for_the_end(client: bool) -> None:
    async with opened(client=client) as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.close, 4000, "enough")
        assert close_in(await peer.receive()) == Close(4000, "enough")
        assert state_of(websocket) is State.CLOSING
        await peer.send(CloseConnection(4000, "enough"))
        await wait_all_tasks_blocked()
        assert state_of(websocket) is State.CLOSED
        assert nursery.child_tasks
        await peer.stream.send_eof()
        await end_of(peer)
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert websocket.ending is Ending.LOCAL_CLOSE


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999, 1005])
@roles
async def test_a_peers_close_is_answered_with_its_own_code(client: bool, code: int) -> None:
    async with opened(client=client) as (websocket, peer):
        await peer.send(CloseConnection(CloseReason(code) if code == 1005 else code))
        assert close_in(await peer.receive()) == Close(code)
        await wait_all_tasks_blocked()
        assert websocket.state is State.CLOSED
        assert websocket.ending is Ending.PEER_CLOSE
        await peer.stream.send_eof()
        await end_of(peer)


async def test_a_server_ends_the_tcp_connection_first() -> None:
    async with opened(client=False) as (_, peer):
        await peer.send(CloseConnection(1000))
        await peer.receive()
        await end_of(peer)


@without_tls
async def test_a_client_leaves_it_to_the_server_to_end_the_tcp_connection_first(
    autojump_clock: MockClock,
) -> None:
    async with opened(client=True, close_timeout=10) as (websocket, peer):
        await peer.send(CloseConnection(1000))
        await peer.receive()
        await end_of(peer)
        assert trio.current_time() == 10
        await websocket.close()
        assert trio.current_time() == 10


@roles
async def test_when_both_close_at_once_each_gets_the_others_code(client: bool) -> None:
    async with opened(client=client) as (websocket, peer), trio.open_nursery() as nursery:
        wire = peer.connection.send(CloseConnection(1001, "leaving"))
        nursery.start_soon(websocket.close, 4000)
        await wait_all_tasks_blocked()
        await peer.stream.send_all(wire)
        await peer.stream.send_eof()
        assert close_in(await peer.receive()) == Close(4000)
        await end_of(peer)
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.received == Close(1001, "leaving")
        assert caught.value.sent == Close(4000)


@roles
async def test_a_peer_that_never_answers_the_close_is_given_up_on(
    client: bool, autojump_clock: MockClock
) -> None:
    async with opened(client=client, close_timeout=10) as (websocket, peer):
        await websocket.close(1000)
        assert trio.current_time() == 10
        assert close_in(await peer.receive()) == Close(1000)
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.received is None
        assert caught.value.code == 1006


async def test_closing_is_not_held_up_by_messages_that_nobody_takes(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, inbox_messages=1) as (websocket, peer), trio.open_nursery() as nursery:
        await peer.send(TextMessage("before"))
        await wait_all_tasks_blocked()
        nursery.start_soon(websocket.close)
        for _ in range(10):
            await peer.send(TextMessage("too late"))
        assert close_in(await peer.receive()) == Close(1000)
        await peer.send(CloseConnection(1000))
        await peer.vanish()
        assert await websocket.recv() == "before"
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()
        assert trio.current_time() == 0


async def test_a_close_frame_reaches_a_peer_that_never_stops_sending(autojump_clock: MockClock) -> None:
    async with opened(close_timeout=10) as (websocket, peer), trio.open_nursery() as nursery:

        async def flood() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await peer.stream.send_all(b"\xff" * KIB)
                    await trio.sleep(0.1)

        nursery.start_soon(flood)
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        await websocket.close()
        assert trio.current_time() == 10
        assert [close_in(event).code for event in await peer.receive_all()] == [1002]
        assert caught.value.received is None
        assert caught.value.sent is not None
        assert caught.value.sent.code == 1002
        assert websocket.ending is Ending.PROTOCOL_ERROR


async def test_a_close_frame_waits_its_turn_behind_what_a_slow_peer_has_not_taken() -> None:
    async with opened(lockstep=True) as (websocket, peer), trio.open_nursery() as nursery:
        await stall(websocket, 100 * KIB)
        nursery.start_soon(websocket.close)
        sizes = 0
        while isinstance(event := await peer.receive(), BytesMessage):
            sizes += len(event.data)
        assert sizes == 100 * KIB
        assert close_in(event) == Close(1000)
        await peer.vanish()


@memory_only
async def test_a_peer_that_keeps_taking_has_its_time_for_the_close_from_when_it_has_it(
    autojump_clock: MockClock,
) -> None:
    async with opened(lockstep=True, close_timeout=10) as (websocket, peer), trio.open_nursery() as nursery:
        await stall(websocket, 100 * KIB)
        nursery.start_soon(websocket.close)
        taken = 0
        while taken < 100 * KIB:
            await trio.sleep(9)
            taken += len(await peer.stream.receive_some())
        assert await peer.stream.receive_some(), "the close frame"
        assert trio.current_time() > 50
        asked = trio.current_time()
        await peer.receive_all()
        assert trio.current_time() == asked + 10


async def test_a_peer_that_takes_nothing_is_given_up_on(autojump_clock: MockClock) -> None:
    async with opened(lockstep=True, close_timeout=10) as (websocket, _):
        await stall(websocket)
        await trio.sleep(5)
        await websocket.close()
        assert trio.current_time() == 15


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (5000, ""), (1000, "x" * 124)]
)
async def test_a_code_or_reason_that_may_not_be_sent_is_refused(code: int, reason: str) -> None:
    async with opened() as (websocket, _):
        with pytest.raises(ValueError, match="close"):
            await websocket.close(code, reason)
        assert websocket.state is State.OPEN


async def test_closing_again_waits_for_the_same_end_and_sends_nothing_more() -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        for code in 1000, 4000:
            nursery.start_soon(websocket.close, code)
            await wait_all_tasks_blocked()
        assert close_in(await peer.receive()) == Close(1000)
        await peer.send(CloseConnection(1000))
        await peer.stream.send_eof()
        await end_of(peer)
        await websocket.close(4001)


async def test_closing_that_is_cancelled_anywhere_has_not_begun_or_goes_on() -> None:
    for steps in itertools.count():
        async with opened() as (websocket, peer), trio.open_nursery() as nursery:

            async def answer(peer: Peer = peer) -> None:
                assert close_in(await peer.receive()) == Close(1000)
                await peer.send(CloseConnection(1000))
                await end_of(peer)
                await peer.vanish()

            nursery.start_soon(answer)
            cancelled = await cancelled_after(steps, websocket.close)
            await websocket.close()
        if not cancelled:
            break
    assert steps > 1


# The end


CLOSES = {
    "1000": (1000, ConnectionClosedOK),
    "1001": (1001, ConnectionClosedOK),
    "empty": (CloseReason.NO_STATUS_RCVD, ConnectionClosedOK),
    "1011": (1011, ConnectionClosedError),
    "4000": (4000, ConnectionClosedError),
}


@pytest.mark.parametrize(("code", "error"), CLOSES.values(), ids=CLOSES)
async def test_after_the_messages_comes_the_peers_close_as_often_as_asked(
    code: int, error: type[ConnectionClosed]
) -> None:
    async with opened() as (websocket, peer):
        await peer.send(TextMessage("one"), TextMessage("two"), CloseConnection(code))
        await peer.vanish()
        await wait_all_tasks_blocked()
        assert [await websocket.recv(), await websocket.recv()] == ["one", "two"]
        for _ in range(3):
            with pytest.raises(error) as caught:
                await websocket.recv()
            assert type(caught.value) is error
            assert caught.value.received == caught.value.sent == Close(code)


async def test_iteration_ends_where_the_peer_closed_normally() -> None:
    async with opened() as (websocket, peer):
        await peer.send(TextMessage("one"), CloseConnection(1001))
        await peer.vanish()
        assert [message async for message in websocket] == ["one"]
        assert [message async for message in websocket] == []


async def test_iteration_raises_where_the_connection_ended_otherwise() -> None:
    async with opened() as (websocket, peer):
        await peer.send(TextMessage("one"))
        await peer.vanish()
        messages = aiter(websocket)
        assert await anext(messages) == "one"
        with pytest.raises(ConnectionClosedError):
            await anext(messages)


@roles
@pytest.mark.parametrize("last", [[CloseConnection(1000)], []], ids=["closed", "vanished"])
async def test_of_a_connection_that_is_over_nothing_is_left_to_the_garbage_collector(
    client: bool, last: list[Event]
) -> None:
    gc.disable()
    try:
        async with opened(client=client, ping_interval=20) as (websocket, peer):
            await peer.send(*last)
            await peer.vanish()
            with suppress(ConnectionClosedError):
                async for _ in websocket:
                    pass
            await websocket.close()
            kept = weakref.ref(websocket)
            del websocket
        await wait_all_tasks_blocked()
        assert kept() is None
    finally:
        gc.enable()


# A peer that breaks the protocol


async def break_protocol(peer: Peer, *events: Event) -> None:
    """Send frames, and bytes that are none, in one piece."""
    await peer.stream.send_all(b"".join(map(peer.connection.send, events)) + b"\xff\xff")


async def test_messages_before_a_protocol_error_are_answered_before_the_connection_fails() -> None:
    async def echo() -> None:
        async for message in websocket:
            await trio.lowlevel.checkpoint()
            await websocket.send(message)

    async def echo_to_the_end() -> None:
        with pytest.raises(ConnectionClosedError):
            await echo()

    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(echo_to_the_end)
        await break_protocol(peer, TextMessage("one"), TextMessage("two"))
        assert await peer.receive() == TextMessage("one")
        assert await peer.receive() == TextMessage("two")
        assert close_in(await peer.receive()).code == CloseCode.PROTOCOL_ERROR
        await end_of(peer)


async def test_a_protocol_error_does_not_wait_for_ever_for_the_answer(autojump_clock: MockClock) -> None:
    async with opened(close_timeout=10) as (websocket, peer):
        await break_protocol(peer, TextMessage("one"))
        assert close_in(await peer.receive()).code == CloseCode.PROTOCOL_ERROR
        assert trio.current_time() == 10
        assert await websocket.recv() == "one"
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()


async def test_a_protocol_error_before_any_message_waits_for_nobody(autojump_clock: MockClock) -> None:
    async with opened() as (_, peer):
        await break_protocol(peer)
        assert close_in(await peer.receive()).code == CloseCode.PROTOCOL_ERROR
        assert trio.current_time() == 0


async def test_closing_after_a_protocol_error_waits_for_no_close_frame(autojump_clock: MockClock) -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        await break_protocol(peer, TextMessage("one"))
        await wait_all_tasks_blocked()
        nursery.start_soon(websocket.close, 4000)
        assert close_in(await peer.receive()) == Close(4000)
        await end_of(peer)
        assert trio.current_time() == 0


# A peer that vanishes


async def break_off(peer: Peer) -> None:
    """Fail the next read on our side, as a reset does."""

    async def reset() -> None:
        raise trio.BrokenResourceError

    peer.ours.receive_stream.receive_some_hook = reset
    await peer.stream.send_all(b"\x8a\x00")


async def end_side(peer: Peer) -> None:
    await peer.stream.send_eof()


async def vanish(peer: Peer) -> None:
    await peer.vanish()


ways_to_vanish = pytest.mark.parametrize(
    ("network_of_all", "vanish"),
    [(MEMORY, end_side), (MEMORY, vanish), (MEMORY, break_off), (SOCKETS, end_side), (SOCKETS, vanish)],
    indirect=["network_of_all"],
)


@ways_to_vanish
@calls
async def test_whoever_waits_when_the_peer_vanishes_is_told(
    call: Callable[[WebSocket], Awaitable[object]], vanish: Callable[[Peer], Awaitable[None]]
) -> None:
    async def repeat() -> None:
        while True:
            await call(websocket)

    async def fail() -> None:
        with pytest.raises(ConnectionClosedError) as caught:
            await repeat()
        assert caught.value.code == 1006
        assert caught.value.received is None

    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.lowlevel.checkpoint()
        await vanish(peer)


@ways_to_vanish
async def test_a_peer_that_vanishes_while_we_close_ends_the_waiting(
    vanish: Callable[[Peer], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with opened() as (websocket, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.close)
            await wait_all_tasks_blocked()
            await vanish(peer)
        assert trio.current_time() == 0
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert (caught.value.received, caught.value.sent) == (None, Close(1000))


@ways_to_vanish
async def test_a_peer_that_vanishes_after_its_close_frame_has_closed_properly(
    vanish: Callable[[Peer], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with opened() as (websocket, peer):
        await peer.send(CloseConnection(1000))
        await wait_all_tasks_blocked()
        await vanish(peer)
        await websocket.close()
        assert trio.current_time() == 0
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()


@pytest.mark.parametrize("how", ["peer", "us", "lost"])
@calls
async def test_calls_after_the_end_raise_at_once(
    how: str, call: Callable[[WebSocket], Awaitable[object]]
) -> None:
    async with opened() as (websocket, peer):
        if how == "us":
            websocket.start_closing(Close(1000))
        if how != "lost":
            await peer.send(CloseConnection(1000))
        await peer.vanish()
        await websocket.close()
        for _ in range(3):
            with pytest.raises((ConnectionClosed, StopAsyncIteration)):
                await call(websocket)


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("call", ["send", "ping"])
async def test_what_is_sent_behind_our_close_frame_is_refused_at_once(
    call: str, stalled: bool, autojump_clock: MockClock
) -> None:
    async with opened(lockstep=True) as (websocket, _):
        if stalled:
            await stall(websocket)
        websocket.start_closing(Close(1000))
        with pytest.raises(ConnectionClosed, match=r"no close frame received; sent 1000"):
            await CALLS[call](websocket)
        assert trio.current_time() == 0


async def test_a_ping_may_be_answered_while_the_connection_closes() -> None:
    async with opened() as (websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.ping, b"ping")
        await wait_all_tasks_blocked()
        websocket.start_closing(Close(1000))
        await peer.send(Pong(b"ping"))


async def test_who_waits_when_the_connection_is_cancelled_is_told() -> None:
    async def fail(call: Callable[[WebSocket], Awaitable[object]]) -> None:
        with pytest.raises(ConnectionClosedError):
            await call(websocket)

    async with trio.open_nursery() as outer, opened(lockstep=True) as (websocket, _):
        await stall(websocket)
        for call in CALLS.values():
            outer.start_soon(fail, call)
        outer.start_soon(websocket.close)
        await wait_all_tasks_blocked()


async def test_a_peer_that_broke_the_protocol_has_the_close_timeout_once_however_it_reads(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with opened(lockstep=True, close_timeout=10, write_timeout=30) as (websocket, peer):
        await stall(websocket, 1000 * KIB)

        async def sip() -> None:
            for _ in range(10):
                await peer.stream.receive_some()
                await trio.sleep(3)

        nursery.start_soon(sip)
        await peer.stream.send_all(b"garbage")
        with pytest.raises(ConnectionClosedError):
            await websocket.recv()
        await websocket.close()
        assert trio.current_time() == 10


async def test_a_peer_that_broke_the_protocol_has_as_long_again_to_end_its_side_once_it_has_taken_all(
    autojump_clock: MockClock,
) -> None:
    async with opened(lockstep=True, close_timeout=10) as (websocket, peer):
        await stall(websocket)
        await peer.stream.send_all(b"garbage")
        await trio.sleep(8)
        assert close_in((await peer.receive_all())[-1]).code == CloseCode.PROTOCOL_ERROR
        assert trio.current_time() == 8
        await websocket.close()
        assert trio.current_time() == 18


async def test_a_close_frame_that_comes_with_the_end_of_the_close_timeout_is_taken_before_it(
    autojump_clock: MockClock,
) -> None:
    async with closed_by_peer_at(10, ping_interval=None, close_timeout=10) as websocket:
        await websocket.close(4001)
        assert trio.current_time() == 10
        assert websocket.close_seen == Close(4000)
