"""A transport over any network, and its peer, which tests drive by hand."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.helpers import Recorder, read_all
from tests.networks import (
    MEMORY,
    PORTABLE,
    SOCKETS,
    STREAMS_OVER_SOCKETS,
    TLS_OVER_MEMORY,
    TLS_OVER_SOCKETS,
    Network,
    left_closed,
)
from trio_ws_server.config import Config
from trio_ws_server.transport import open_engine, open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.abc import Stream

    from trio_ws_server.transport import Transport

KIB = 1024
CONFIG = Config(write_high_water=64 * KIB, write_low_water=16 * KIB, write_timeout=30)

NETWORKS = {
    "memory": MEMORY,
    "stream over socket": STREAMS_OVER_SOCKETS,
    "socket": SOCKETS,
    "socket with a portable selector": PORTABLE,
    "TLS over memory": TLS_OVER_MEMORY,
    "TLS over socket": TLS_OVER_SOCKETS,
}
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
SOCKET_NETWORKS = {name: network for name, network in NETWORKS.items() if "memory" not in name}
socket_networks = pytest.mark.parametrize("network", SOCKET_NETWORKS.values(), ids=SOCKET_NETWORKS)
POLLED_NETWORKS = {name: network for name, network in NETWORKS.items() if network in (SOCKETS, PORTABLE)}
polled_networks = pytest.mark.parametrize("network", POLLED_NETWORKS.values(), ids=POLLED_NETWORKS)


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

    def unsent(self) -> int:
        self.transport.see_taken()
        return self.transport.written - self.transport.taken

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
async def line(
    network: Network = MEMORY, config: Config = CONFIG, *, buffered: bool = False
) -> AsyncGenerator[Line]:
    """
    Run a transport to a peer that takes only what it asks for, the network holding nothing, or being full.

    With ``buffered``, the network takes what it can. At the end, the transport has closed its stream.
    """
    ours, theirs = network.pair(full=not buffered)
    with network.used():
        async with left_closed(ours):
            async with recorded(ours, config) as (transport, recorder):
                yield Line(transport, recorder, theirs)
            assert transport.lost
            await theirs.aclose()
