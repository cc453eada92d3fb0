"""The cases of the suite, what is expected of them, and choices of them."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

EXPECTED: dict[str, str] = json.loads(Path(__file__).with_name("expected.json").read_text())
"""The result that each case must have, in the order of the suite."""

_COMPRESSING = ("12.*", "13.*")
_STRIDE = 5
_WHOLE = ("asgi", "native", "client")
"""The subjects to which nothing is missing; the others have another transport, or another way to mask."""


def matching(patterns: Iterable[str]) -> list[str]:
    """Return the cases that match a pattern, such as "9.*". Raises ``ValueError`` for one that no case matches."""
    chosen: set[str] = set()
    for pattern in patterns:
        found = {case for case in EXPECTED if fnmatchcase(case, pattern)}
        if not found:
            raise ValueError(f'no case matches {pattern!r}; patterns are like "9.*" or "7.1.6"')
        chosen |= found
    return [case for case in EXPECTED if case in chosen]


def quick(subject: str) -> list[str]:
    """
    Return all cases without compression, and the subject's share of those with it, of which each takes seconds.

    Every fifth of these falls to one of the subjects to which nothing is missing, which have all that compresses in
    common. The others have no share: what they lack has little to do with compression.
    """
    slow = matching(_COMPRESSING)
    left_out = set(slow)
    if subject in _WHOLE:
        left_out -= set(slow[_STRIDE - 1 :: _STRIDE][_WHOLE.index(subject) :: len(_WHOLE)])
    return [case for case in EXPECTED if case not in left_out]
