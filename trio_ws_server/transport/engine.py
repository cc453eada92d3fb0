"""What all connections of a server, or of a client, share."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from trio_ws_server.scheduling import serving_nursery
from trio_ws_server.transport.poller import Poller, open_poller
from trio_ws_server.transport.timers import Timers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import trio


class Engine(NamedTuple):
    """The few tasks that do for all connections what each would otherwise need tasks of its own for."""

    timers: Timers
    nursery: trio.Nursery
    """For what a connection has to do at times, none of which is left when the connection is lost."""
    poller: Poller | None
    """None where the platform has no means for it."""


@asynccontextmanager
async def open_engine() -> AsyncGenerator[Engine, None]:
    """Run an engine for the length of the ``async with``."""
    timers = Timers()
    with open_poller() as poller:
        async with serving_nursery() as nursery:
            nursery.start_soon(timers.run)
            if poller is not None:
                nursery.start_soon(poller.run)
            yield Engine(timers, nursery, poller)
