"""
What the connection's tasks need of Trio's scheduler: waiting for a change, giving way, and serving tasks.

The one module that uses `trio.lowlevel`. A `trio.Event` is made anew for each time that it is waited for; a
`ParkingLot` stays, and waking it costs one `reschedule`. That is right as long as every wait stands in a loop
that looks at what it waits for again, since a wake-up says only that something has changed.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

CALLS_BETWEEN_YIELDS = 32
"""A checkpoint costs ten times what taking a message from an inbox does: calls that need not wait share one."""


class Changes:
    """Where tasks wait for something to change."""

    __slots__ = ("_lot",)

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    def announce(self) -> None:
        """Wake every waiting task."""
        self._lot.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true; return at once, without a checkpoint, if it is already."""
        while not condition():
            await self._lot.park()


class Pace:
    """Lets a task that never has to wait give way to others all the same."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls = 0

    async def step(self) -> None:
        """
        Raise ``Cancelled`` if the caller is cancelled, and yield at every 32nd call.

        Either happens before the caller has done anything, so that cancelling it leaves nothing half done.
        """
        self._calls += 1
        if self._calls < CALLS_BETWEEN_YIELDS:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._calls = 0
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """
    Open a nursery for tasks that serve the body of the ``async with`` and are cancelled when it ends.

    What the body raises comes out as it is, not in an exception group; a group comes out only where a serving
    task failed too.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and group.exceptions == (failure,):
            raise failure from failure.__cause__
        raise
