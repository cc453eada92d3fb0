"""Deadlines: functions called at their times, for all connections by one task."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_ws_server.scheduling import Changes

CALLS_PER_TURN = 64
"""Functions that are called before other tasks get their turn."""

_FEW = 100
"""Cancelled timers that are not worth looking for."""


class Owner(Protocol):
    """Who answers for what a function raises."""

    def timer_is_due(self, timer: Timer, callback: Callable[[], None]) -> None:
        """Call the timer's function. Must not raise."""


class Timer:
    """A function to be called once, unless this is cancelled before."""

    __slots__ = ("_timers", "callback", "owner")

    def __init__(self, timers: Timers, callback: Callable[[], None], owner: Owner | None) -> None:
        self._timers = timers
        self.callback: Callable[[], None] | None = callback
        self.owner = owner

    def cancel(self) -> None:
        """Let the function not be called, and keep nothing of it; without effect once it was."""
        if self.callback is not None:
            self.callback = self.owner = None
            self._timers.one_was_cancelled()


class Timers:
    """Calls functions at their times, as long as `run` does."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._sleep = trio.CancelScope()

    def call_at(self, time: float, callback: Callable[[], None], owner: Owner | None = None) -> Timer:
        """
        Have ``callback`` called at ``time``, in seconds of `trio.current_time`; by its owner, if it has one.

        One without must not raise.
        """
        timer = Timer(self, callback, owner)
        heapq.heappush(self._heap, (time, next(self._numbers), timer))
        if time < self._sleep.deadline:
            self._sleep.deadline = time
        return timer

    async def in_time(self, changes: Changes, condition: Callable[[], bool], deadline: float) -> bool:
        """
        Do as ``changes.until`` does, but no longer than to the deadline; return whether the condition is true.

        What came while the process stood still, past the deadline, came in time. Cancelling it leaves nothing. A
        cancel scope would take eight times as long.
        """
        over = False

        def end() -> None:
            nonlocal over
            over = True
            changes.announce()

        timer = self.call_at(deadline, end)
        try:
            await changes.until(lambda: over or condition())
        finally:
            timer.cancel()
        return condition()

    async def run(self) -> NoReturn:
        """Call what is due when it is."""
        while True:
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else float("inf")) as self._sleep:
                await trio.sleep_forever()
            await self._call_what_is_due()

    def one_was_cancelled(self) -> None:
        """Forget the cancelled, once they are most of all."""
        self._cancelled += 1
        if self._cancelled > max(_FEW, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def _call_what_is_due(self) -> None:
        # After a standstill of the process, what came meanwhile is seen before it is missed.
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        called = 0
        while self._heap and self._heap[0][0] <= now:
            _, _, timer = heapq.heappop(self._heap)
            callback, timer.callback = timer.callback, None
            owner, timer.owner = timer.owner, None
            if callback is None:
                self._cancelled -= 1
                continue
            if owner is None:
                callback()
            else:
                owner.timer_is_due(timer, callback)
            called += 1
            if called % CALLS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
