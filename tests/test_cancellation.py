"""A WebSocket operation that is cancelled at any point has either not begun or is whole, and the next one works."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.automatic_peer import AutomaticPeer, connected
from tests.cancelling import Cancelling, at_every_step
from tests.networks import MEMORY, SOCKETS
from tests.websocket_peer import KIB, opened, stall
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Options
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol.websocket import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_ws_server.websocket import WebSocket

roles = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
networks = pytest.mark.parametrize(
    ("tls", "lockstep", "network_of_all"),
    [
        (False, False, MEMORY),
        (False, True, MEMORY),
        (True, True, MEMORY),
        (False, False, SOCKETS),
        (False, True, SOCKETS),
        (True, True, SOCKETS),
    ],
    ids=["memory", "lockstep", "TLS", "sockets", "full sockets", "TLS on full sockets"],
    indirect=["network_of_all"],
)
pytestmark = pytest.mark.usefixtures("network_of_all")

SOURCE = random.Random(7692)
INCOMPRESSIBLE = SOURCE.randbytes(100 * KIB)
COMPRESSIBLE = bytes(SOURCE.choices(b"abcdefgh", k=100 * KIB))
SENT_BY_PEER = ["one", "two"]


@dataclass(frozen=True)
class Operation:
    """What is called and cancelled."""

    call: Callable[[WebSocket, list[str | bytes]], Awaitable[object]]
    """Takes the connection, and where to put the messages that it receives."""
    message: bytes | None = None
    """What the peer receives of it, wholly or not at all."""
    options: Options = field(default_factory=Options)


def sending(message: str | bytes, *, compressed: bool = False) -> Operation:
    return Operation(
        lambda websocket, _: websocket.send(message),
        message=message.encode() if isinstance(message, str) else message,
        options={"per_message_deflate": True, "deflate_min_size": 0} if compressed else {},
    )


async def receive(websocket: WebSocket, received: list[str | bytes]) -> None:
    received.append(await websocket.recv())


async def receive_two(websocket: WebSocket, received: list[str | bytes]) -> None:
    async for message in websocket:
        received.append(message)
        if message == SENT_BY_PEER[-1]:
            break


OPERATIONS = {
    "send": sending("message"),
    "send compressed": sending("message" * 10, compressed=True),
    "send much": sending(INCOMPRESSIBLE),
    "send much text": sending("é" * 50 * KIB),
    "send much compressed": sending(COMPRESSIBLE, compressed=True),
    "send much that does not compress": sending(INCOMPRESSIBLE, compressed=True),
    "recv": Operation(receive),
    "recv into a full inbox": Operation(receive, options={"inbox_messages": 1}),
    "iteration": Operation(receive_two),
    "ping": Operation(lambda websocket, _: websocket.ping(b"ping")),
}
operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@operations
@networks
@roles
async def test_after_a_cancelled_operation_all_that_is_sent_and_received_is_whole_and_there_once(
    client: bool, tls: bool, lockstep: bool, operation: Operation, autojump_clock: MockClock
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        received: list[str | bytes] = []
        deflate = "per_message_deflate" in operation.options
        async with (
            connected(client=client, tls=tls, lockstep=lockstep) as streams,
            trio.open_nursery() as nursery,
            opened(client=client, streams=streams, **operation.options) as (websocket, _),
        ):
            peer = AutomaticPeer(streams[1], client=not client, messages=SENT_BY_PEER, deflate=deflate)
            nursery.start_soon(peer.run)
            cancelled = await cancelling(lambda: operation.call(websocket, received))
            async with trio.open_nursery() as pinging:
                # Its pong comes behind the messages, for which the inbox may have no room yet.
                pinging.start_soon(websocket.ping, b"ping")
                await websocket.send("probe")
                while (message := await websocket.recv()) != "answer":
                    received.append(message)
            await websocket.close()
        assert received == SENT_BY_PEER
        whole = [] if operation.message is None else [operation.message]
        assert peer.received in ([*whole, b"probe"], [b"probe"] if cancelled else None)
        assert peer.close == Close(1000)

    assert await at_every_step(scenario) >= 2
    assert trio.current_time() == 0


@networks
@roles
async def test_a_message_that_waits_behind_others_and_is_given_up_on_leaves_them_whole(
    client: bool, tls: bool, lockstep: bool, autojump_clock: MockClock
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        async with (
            connected(client=client, tls=tls, lockstep=lockstep) as streams,
            trio.open_nursery() as nursery,
            opened(client=client, streams=streams, per_message_deflate=True) as (websocket, _),
        ):
            peer = AutomaticPeer(streams[1], client=not client, deflate=True)
            await stall(websocket)
            async with trio.open_nursery() as senders:
                for message in (COMPRESSIBLE, INCOMPRESSIBLE):
                    senders.start_soon(websocket.send, message)
                await wait_all_tasks_blocked()
                nursery.start_soon(peer.run)
                cancelled = await cancelling(lambda: websocket.send("message" * 10))
            await websocket.send("probe")
            await websocket.close()
        *messages, probe = peer.received
        assert probe == b"probe"
        assert {bytes(100 * KIB), COMPRESSIBLE, INCOMPRESSIBLE} <= {*messages}
        assert len(messages) in ([3, 4] if cancelled else [4])
        assert {*messages} <= {bytes(100 * KIB), COMPRESSIBLE, INCOMPRESSIBLE, b"message" * 10}

    assert await at_every_step(scenario) >= 2
    assert trio.current_time() == 0


@networks
@roles
async def test_closing_that_is_cancelled_has_not_begun_or_goes_on_to_its_end(
    client: bool, tls: bool, lockstep: bool, autojump_clock: MockClock
) -> None:
    outcomes = set()

    async def scenario(cancelling: Cancelling) -> None:
        async with (
            connected(client=client, tls=tls, lockstep=lockstep) as streams,
            trio.open_nursery() as nursery,
            opened(client=client, streams=streams) as (websocket, _),
        ):
            peer = AutomaticPeer(streams[1], client=not client)
            nursery.start_soon(peer.run)
            await cancelling(lambda: websocket.close(4000, "enough"))
            outcomes.add(websocket.state)
            if untouched := websocket.state is State.OPEN:
                await websocket.send("probe")
                assert await websocket.recv() == "answer"
            else:
                with pytest.raises(ConnectionClosed):
                    await websocket.send("too late")
            await websocket.close()
            with pytest.raises(ConnectionClosedOK if untouched else ConnectionClosedError) as caught:
                await websocket.recv()
        assert peer.close == caught.value.sent == (Close(1000) if untouched else Close(4000, "enough"))
        assert peer.received == ([b"probe"] if untouched else [])

    assert await at_every_step(scenario) >= 2
    assert outcomes == {State.OPEN, State.CLOSING, State.CLOSED}
    assert trio.current_time() == 0


@operations
@networks
@roles
async def test_on_a_connection_that_is_lost_meanwhile_the_next_operation_says_so(
    client: bool, tls: bool, lockstep: bool, operation: Operation, autojump_clock: MockClock
) -> None:
    async def scenario(cancelling: Cancelling) -> None:
        received: list[str | bytes] = []

        async def vanish_after_a_read(stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            await trio.aclose_forcefully(stream)

        async def unless_lost(call: Callable[[], Awaitable[object]]) -> None:
            with suppress(ConnectionClosedError):
                await call()

        async with (
            connected(client=client, tls=tls, lockstep=lockstep) as streams,
            trio.open_nursery() as nursery,
            opened(client=client, streams=streams, **operation.options) as (websocket, _),
        ):
            nursery.start_soon(vanish_after_a_read, streams[1])
            nursery.start_soon(unless_lost, lambda: websocket.send("first"))
            await cancelling(lambda: unless_lost(lambda: operation.call(websocket, received)))
            await wait_all_tasks_blocked()
            for attempt in (lambda: websocket.send("late"), websocket.recv, websocket.ping):
                with pytest.raises(ConnectionClosedError) as caught:
                    await attempt()
                assert (caught.value.received, caught.value.sent) == (None, None)
            await websocket.close()
        assert received == []

    assert await at_every_step(scenario) >= 2
    assert trio.current_time() == 0
