"""What arrives from a network may be cut anywhere, and means the same wherever it is."""

from __future__ import annotations

import hashlib
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def ways_to_cut(stream: bytes) -> Iterator[list[bytes]]:
    """Yield the stream in one piece, byte by byte, and as `pieces` has it."""
    yield [stream]
    yield [bytes([byte]) for byte in stream]
    yield pieces(stream)


def pieces(stream: bytes) -> list[bytes]:
    """
    Return the stream in pieces of 1 to 24 bytes.

    The sizes follow from the stream's hash, so that an input is nothing but what a peer could send.
    """
    sizes = cycle(1 + byte % 24 for byte in hashlib.sha256(stream).digest())
    source = BytesIO(stream)
    return list(iter(lambda: source.read(next(sizes)), b""))
