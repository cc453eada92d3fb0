"""The transport straight on a socket: held writes, and what only a socket and its poller can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.helpers import Recorder
from tests.scheduling import undisturbed_waits
from tests.transport.lines import KIB, line, polled_networks

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.networks import Network


class Waiting(Recorder):
    """A receiver that lets a test wait for the loss without a deadline of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = trio.Event()

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
