"""Trio's scheduler in tests: what it may not be asked to do, runs that depend on none before them, and turns."""

from __future__ import annotations

import itertools
import math
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from trio_ws_server import scheduling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


def let_yield(patches: pytest.MonkeyPatch, *, always: bool) -> None:
    """Let calls that need not wait always yield, or never: else they do at one in 32."""
    step = trio.lowlevel.checkpoint if always else trio.lowlevel.checkpoint_if_cancelled
    patches.setattr(scheduling, "TURNS", itertools.repeat(step))


def run_paced(yielding: bool, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run Trio on a clock that jumps, and let calls that need not wait always yield, or never."""
    with pytest.MonkeyPatch.context() as patches:
        # One count serves all: it would make a run depend on those before it.
        let_yield(patches, always=yielding)
        trio.run(function, *arguments, clock=MockClock(autojump_threshold=0))


class Pulse:
    """Counts how often a task that never waits has its turn."""

    def __init__(self) -> None:
        self.beats = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.beats += 1


@contextmanager
def undisturbed_waits() -> Iterator[None]:
    """
    See to it that once Trio has decided for how long to wait, nothing makes a task run or be due earlier.

    For a mock clock, which stands still meanwhile; to be entered before an engine is opened.
    """
    instrument = _EndsOfPasses()
    trio.lowlevel.add_instrument(instrument)
    yield
    trio.lowlevel.remove_instrument(instrument)
    assert not instrument.disturbances


class _EndsOfPasses(trio.abc.Instrument):
    def __init__(self) -> None:
        self.disturbances: list[str] = []
        self._known = math.inf

    def before_io_wait(self, timeout: float) -> None:
        self._known = self._next_deadline()

    def after_io_wait(self, timeout: float) -> None:
        if (due := self._next_deadline()) < self._known:
            self.disturbances.append(f"a deadline at {due} where there was {self._known}")

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if any(
            frame.f_code.co_name == self.before_io_wait.__name__ for frame, _ in traceback.walk_stack(None)
        ):
            self.disturbances.append(f"{task.name} was made to run")

    def _next_deadline(self) -> float:
        return trio.current_time() + trio.lowlevel.current_statistics().seconds_to_next_deadline
