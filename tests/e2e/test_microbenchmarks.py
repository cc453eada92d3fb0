"""The microbenchmarks, each once: that they do what they measure."""

from __future__ import annotations

import pytest

from benchmarks.microbenchmarks import BENCHMARKS, Benchmark


@pytest.mark.parametrize("one", BENCHMARKS, ids=lambda one: one.title)
async def test_a_microbenchmark_can_be_done_again_and_again(one: Benchmark) -> None:
    async with one.batch() as batch:
        for _ in range(3):
            await batch()
