"""However many sends are given up on, whenever: the peer gets whole messages, each once, and all that were sent."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests.automatic_peer import AutomaticPeer, connected
from tests.websocket_peer import KIB, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosed

if TYPE_CHECKING:
    from trio.testing import MockClock

    from trio_ws_server.websocket import WebSocket

SENDERS = 40
MESSAGES = 50
LARGEST = 200 * KIB
"""Far above the size at which a message is compressed in steps; most are small."""


def message(sender: int, number: int) -> str | bytes:
    """Return a message like no other: text, which can be compressed, or bytes, which cannot."""
    source = random.Random(f"{sender} {number}")
    size = int(LARGEST * source.random() ** 6)
    if number % 2:
        return f"{sender} {number} {'é' * number}{source.randbytes(size // 2).hex()}"
    return f"{sender} {number} ".encode() + source.randbytes(size)


class Senders(trio.abc.Instrument):
    """Tasks that send on one connection, and lose patience."""

    def __init__(self, websocket: WebSocket) -> None:
        self.completed: set[tuple[int, int]] = set()
        self.cancelled = 0
        self._websocket = websocket
        self._source = random.Random("cancel")
        self._scopes: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        trio.lowlevel.add_instrument(self)
        async with trio.open_nursery() as pinging:
            pinging.start_soon(self._ping)
            async with trio.open_nursery() as senders:
                for sender in range(SENDERS):
                    senders.start_soon(self._send_all, sender)
            pinging.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(self)

    async def _send_all(self, sender: int) -> None:
        source = random.Random(sender)
        for number in range(MESSAGES):
            with trio.move_on_after(source.expovariate(5)) as scope, suppress(ConnectionClosed):
                self._scopes[sender] = scope
                await self._websocket.send(message(sender, number))
                self.completed.add((sender, number))
            self.cancelled += scope.cancelled_caught

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Cancel not only who waits while nothing moves, as time does, but in the midst of everything."""
        if self._source.random() < 0.005:
            for sender in self._source.sample(range(SENDERS), k=self._source.choice([1, SENDERS // 2])):
                if sender in self._scopes:
                    self._scopes[sender].cancel()

    async def _ping(self) -> None:
        source = random.Random("ping")
        with suppress(ConnectionClosed):
            while True:
                with trio.move_on_after(source.random()):
                    await self._websocket.ping()


async def read_slowly(peer: AutomaticPeer, stream: trio.abc.Stream, in_the_middle: trio.Event) -> None:
    """Read to the end, in pieces of any size, and ping now and then; say when there are 100 messages."""
    source = random.Random("read")
    for number in itertools.count():
        data = await stream.receive_some(source.randrange(1, 64 * KIB))
        if not data:
            break
        await peer.take(bytes(data))
        if len(peer.received) >= 100:
            in_the_middle.set()
        await trio.sleep(source.random() / 100)
        if number % 10 == 0:
            await peer.ping(str(number).encode())
    await stream.aclose()


def parsed(received: bytes) -> tuple[int, int]:
    """Return whose message it is, and its number, having seen that it is whole."""
    sender, number, _ = received.split(b" ", 2)
    whole = message(int(sender), int(number))
    assert received == (whole.encode() if isinstance(whole, str) else whole)
    return int(sender), int(number)


@pytest.mark.parametrize("closed_by", ["nobody", "us", "peer"])
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
async def test_of_thousands_of_sends_given_up_on_the_peer_gets_each_message_whole_or_not_at_all(
    client: bool, deflate: bool, closed_by: str, autojump_clock: MockClock
) -> None:
    async with (
        connected(client=client, tls=False, lockstep=True) as streams,
        opened(client=client, streams=streams, per_message_deflate=deflate) as (websocket, _),
        trio.open_nursery() as nursery,
    ):
        peer = AutomaticPeer(streams[1], client=not client, deflate=deflate)
        senders = Senders(websocket)
        in_the_middle = trio.Event()

        async def close_in_the_middle() -> None:
            await in_the_middle.wait()
            if closed_by == "us":
                websocket.start_closing(Close(1000))
            else:
                await peer.send_close()

        nursery.start_soon(read_slowly, peer, streams[1], in_the_middle)
        if closed_by != "nobody":
            nursery.start_soon(close_in_the_middle)
        await senders.run()
        await websocket.close()

    messages = [parsed(received) for received in peer.received]
    assert len(set(messages)) == len(messages)
    for sender in range(SENDERS):
        numbers = [number for its_sender, number in messages if its_sender == sender]
        assert numbers == sorted(numbers)
    assert senders.completed <= {*messages}
    assert peer.close == Close(1000)
    if closed_by == "nobody":
        assert len(senders.completed) + senders.cancelled == SENDERS * MESSAGES
        # The test would show nothing if next to none had been given up on, or next to all.
        assert senders.cancelled > 1000
        assert len(senders.completed) > 100
        assert len(peer.pongs) > 10
