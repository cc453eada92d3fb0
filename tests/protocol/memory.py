"""How much memory something takes."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def held_by(action: Callable[[], object]) -> int:
    """Return how many bytes more are held after an action, while its result lives."""
    action()  # what Python itself keeps after a first time is not counted
    tracemalloc.start()
    try:
        result = action()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del result
    return size


def most_held_during(action: Callable[[], object]) -> int:
    """Return how many bytes more are held at most at any time of an action, its result included."""
    tracemalloc.start()
    try:
        result = action()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del result
    return peak
