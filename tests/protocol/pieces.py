"""What arrives from a network is cut anywhere: what the tests of the protocols need to cut it themselves."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EFFORT = int(os.environ.get("PROPERTY_TEST_EFFORT", "1"))
"""How many times as many examples as usual the property tests try, for those who look for mistakes at leisure."""

cuts = st.lists(st.integers(0, 400), max_size=8)
"""Places to cut a stream at; those behind its end cut nothing."""


def cut(stream: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """Yield the stream in pieces, none of them empty."""
    inside = {place for place in places if 0 < place < len(stream)}
    for start, end in pairwise(sorted({0, len(stream)} | inside)):
        yield stream[start:end]


def whole(stream: bytes) -> Iterator[bytes]:
    """Yield the stream in one piece."""
    return cut(stream, ())


def bytewise(stream: bytes) -> Iterator[bytes]:
    """Yield the stream one byte at a time."""
    return cut(stream, range(len(stream)))
