"""What the tasks of two applications make of one connection, whatever they do and whenever they are cancelled."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import lockstep_stream_pair, memory_stream_pair

from tests.cancelling import Cancelling
from tests.protocol.pieces import EFFORT
from tests.scheduling import run_paced
from tests.websocket_peer import KIB, opened
from trio_ws_server.errors import ConnectionClosed
from trio_ws_server.protocol.websocket import Ending, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypothesis.strategies import SearchStrategy

    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket

    Call = Callable[["Party"], Awaitable[None]]
    Step = tuple[Call, int | None]
    """A call, and the number of steps of Trio's tasks after which it is cancelled, None: not so soon."""

    Task = tuple[bool, list[Step]]
    """Whether it is the client's, and what it does."""

PATIENCE = 20
"""Seconds that an application waits for one call."""


class Party:
    """One end, and what its application has sent and received."""

    peer: Party

    def __init__(self, websocket: WebSocket, stream: trio.abc.Stream) -> None:
        self.websocket = websocket
        self.stream = stream
        self.begun: dict[str, int] = {}
        """When each message was begun to be sent: those that were cancelled may have been sent or not."""
        self.sent: dict[str, int] = {}
        """When each message was sent, of those that were not cancelled."""
        self.received: list[str | bytes] = []

    # The calls.

    async def send(self, size: int) -> None:
        message = f"{len(self.begun)} {size * 'x'}"
        self.begun[message] = len(self.begun) + len(self.sent)
        await self.websocket.send(message)
        self.sent[message] = len(self.begun) + len(self.sent)

    async def receive(self) -> None:
        try:
            self.received.append(await self.websocket.recv())
        except ConnectionClosed:
            assert self.websocket.state is State.CLOSED
            raise

    async def ping(self) -> None:
        assert 0 <= await self.websocket.ping() <= PATIENCE

    async def close(self, code: int) -> None:
        await self.websocket.close(code)
        assert self.websocket.state is State.CLOSED

    async def pause(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def lose(self) -> None:
        """Have the network break."""
        await trio.aclose_forcefully(self.stream)

    # The tasks.

    async def do(self, steps: list[Step]) -> None:
        """Make one call after the other; cancel them where that is said, or in the end."""
        for call, cancel_after in steps:
            with trio.move_on_after(PATIENCE):
                try:
                    if cancel_after is None:
                        await call(self)
                    else:
                        await Cancelling(cancel_after)(partial(call, self))
                except ConnectionClosed:
                    assert self.websocket.state is not State.OPEN

    async def receive_the_rest(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self.receive()

    def check_received(self, *, all_is_there: bool) -> None:
        """Each message once, of what the peer has sent, and after all that it had sent before it began that one."""
        assert len(set(self.received)) == len(self.received)
        for place, message in enumerate(self.received):
            assert isinstance(message, str)
            before = {other for other, sent in self.peer.sent.items() if sent < self.peer.begun[message]}
            assert before <= set(self.received[:place])
        if all_is_there or self.websocket.ending is Ending.PEER_CLOSE:
            assert self.peer.sent.keys() <= set(self.received)


def _call(method: Callable[..., Awaitable[None]], **arguments: SearchStrategy[Any]) -> SearchStrategy[Call]:
    return st.builds(partial, st.just(method), **arguments)


_talk = st.one_of(
    _call(Party.send, size=st.sampled_from([0, 50, 500, 40 * KIB])), _call(Party.receive), _call(Party.ping)
)
_end = _call(Party.close, code=st.sampled_from([1000, 1001, 4000])) | _call(Party.lose)
_patience = st.none() | st.integers(0, 20)
_talking = st.tuples(st.booleans(), st.lists(st.tuples(_talk, _patience), min_size=1, max_size=8))
_ending = st.tuples(
    st.booleans(),
    st.tuples(
        st.tuples(_call(Party.pause, seconds=st.integers(0, 10)), st.none()), st.tuples(_end, _patience)
    ).map(list),
)
tasks: SearchStrategy[list[Task]] = st.tuples(
    st.lists(_talking, min_size=2, max_size=5), st.lists(_ending, max_size=2)
).map(lambda both: both[0] + both[1])
options: SearchStrategy[Options] = st.fixed_dictionaries(  # type: ignore[assignment]
    {
        "inbox_messages": st.integers(1, 3),
        "write_high_water": st.sampled_from([100, 64 * KIB]),
        "write_low_water": st.just(20),
        "per_message_deflate": st.booleans(),
        "ping_interval": st.none() | st.just(1.0),
    }
)


async def converse(lockstep: bool, options: Options, tasks: list[Task], client_closes: bool) -> None:
    near, far = lockstep_stream_pair() if lockstep else memory_stream_pair()
    async with (
        opened(streams=(near, far), **options) as (server_end, _),
        opened(client=True, streams=(far, near), **options) as (client_end, _),
    ):
        parties = server, client = Party(server_end, near), Party(client_end, far)
        server.peer, client.peer = client, server
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for is_client, steps in tasks:
                    nursery.start_soon(parties[is_client].do, steps)
            async with trio.open_nursery() as nursery:
                for party in parties:
                    nursery.start_soon(party.receive_the_rest)
                await trio.sleep(1)
                all_is_there = server.websocket.state is client.websocket.state is State.OPEN
                await parties[client_closes].close(1000)
                await parties[not client_closes].close(1000)
        for party in parties:
            party.check_received(all_is_there=all_is_there)
    for stream in (near, far):
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


@settings(max_examples=60 * EFFORT)
@given(st.booleans(), options, tasks, st.booleans(), st.booleans())
def test_what_is_sent_is_received_once_and_in_order_and_all_ends_well(
    lockstep: bool,
    options: Options,
    tasks: list[Task],
    client_closes: bool,
    yielding: bool,
) -> None:
    run_paced(yielding, converse, lockstep, options, tasks, client_closes)
