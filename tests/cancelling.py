"""Cancelling a call at every point that there is, one after the other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio

from tests.scheduling import let_yield

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Cancelling(trio.abc.Instrument):
    """
    Cancels a call after so many steps of tasks, 0: before it begins.

    The steps of all tasks count, not the caller's alone. So the call is cancelled at each of its await points, and
    at each of them both while it waits for others and when these have woken it already.
    """

    def __init__(self, steps: int) -> None:
        self.in_time = False
        """Whether the call was still under way after so many steps."""
        self.cancelled = False
        """Whether it ended by being cancelled."""
        self._steps_left = steps
        self._scope = trio.CancelScope()

    async def __call__(self, call: Callable[[], Awaitable[object]]) -> bool:
        """Make the call, once; return whether it was cancelled."""
        trio.lowlevel.add_instrument(self)
        try:
            with self._scope:
                self._strike_when_due()
                await call()
        finally:
            trio.lowlevel.remove_instrument(self)
        self.cancelled = self._scope.cancelled_caught
        return self.cancelled

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps_left -= 1
        self._strike_when_due()

    def _strike_when_due(self) -> None:
        if self._steps_left == 0:
            self.in_time = True
            self._scope.cancel()


async def at_every_step(scenario: Callable[[Cancelling], Awaitable[object]]) -> int:
    """
    Play the scenario again and again, its call being cancelled one step later each time, until that is too late.

    Every public async function yields at every call here, as else it does at one in 32: that is an await point too.
    No task may be left over from the scenario. Returns how often the call was cancelled.
    """
    cancelled = 0
    tasks = trio.lowlevel.current_statistics().tasks_living
    with pytest.MonkeyPatch.context() as patches:
        let_yield(patches, always=True)
        for steps in itertools.count():
            cancelling = Cancelling(steps)
            await scenario(cancelling)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            cancelled += cancelling.cancelled
            if not cancelling.in_time:
                break
    return cancelled
