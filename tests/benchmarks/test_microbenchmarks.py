"""Costs as ratios to a yardstick."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks import yardsticks
from benchmarks.microbenchmarks import Benchmark, measure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

STEPS = 300


@asynccontextmanager
async def three_hundred_steps() -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Have a batch do what the yardstick in Python does, so many times."""
    with yardsticks.python() as step:

        async def batch() -> None:
            step(STEPS)

        yield batch


async def test_a_cost_is_that_of_an_operation_in_steps_of_the_yardstick() -> None:
    # A batch of so many steps that has only a third as many operations: each costs three steps.
    benchmark = Benchmark("", STEPS // 3, three_hundred_steps, yardsticks.python, bound=4.0)

    ratio, seconds = await measure(benchmark)

    assert 2.0 < ratio < 4.0
    assert 0 < seconds < 0.001
