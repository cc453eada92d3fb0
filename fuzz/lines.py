"""HTTP consists of lines: inputs that are HTTP are changed by whole lines, which by single bytes takes long."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def mutated(data: bytes, lines: Sequence[bytes], seed: int) -> bytes:
    """Return the data with a line of it left out or repeated, or with one of the ``lines`` in it."""
    random = Random(seed)  # noqa: S311
    own = data.split(b"\r\n")
    place = random.randrange(len(own))
    line = random.choice([random.choice(own), random.choice(lines)])
    own[place : place + random.randrange(2)] = [line] * random.randrange(2)
    return b"\r\n".join(own)
