"""How much memory something takes."""

from __future__ import annotations

import sys
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def held_by(action: Callable[[], object]) -> int:
    """Return how many bytes more are held after an action, while its result lives."""
    action()  # what Python itself keeps after a first time is not counted
    held, _ = _traced(action)
    return held


def most_held_during(action: Callable[[], object]) -> int:
    """Return how many bytes more are held at most at any time of an action, its result included."""
    _, peak = _traced(action)
    return peak


def _traced(action: Callable[[], object]) -> tuple[int, int]:
    """
    Return how many bytes more are held after an action, while its result lives, and at most during it.

    What traces Python's code, as coverage does, is off meanwhile: it would be counted too, and slow down both.
    """
    tracer = sys.gettrace()
    sys.settrace(None)
    tracemalloc.start()
    try:
        result = action()
        traced = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        sys.settrace(tracer)
    del result
    return traced
