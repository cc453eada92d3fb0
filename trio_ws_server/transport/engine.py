"""What all connections of a server share."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
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
    """None where the platform has no means for it, or where it is not worth it."""


@asynccontextmanager
async def open_engine(*, poller: bool = True) -> AsyncGenerator[Engine, None]:
    """
    Run an engine for the length of the ``async with``.

    A ``poller`` takes a descriptor, a buffer, and some time in each pass of the scheduler: too much for a client.
    """
    timers = Timers()
    with open_poller() if poller else nullcontext() as opened:
        async with serving_nursery() as nursery:
            nursery.start_soon(timers.run)
            if opened is not None:
                nursery.start_soon(opened.run)
            yield Engine(timers, nursery, opened)
