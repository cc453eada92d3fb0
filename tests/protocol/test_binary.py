"""Pieces of binary messages are put together, in bounded memory, however they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.memory import most_held_during
from trio_ws_server.protocol.binary import BinaryPieces

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 400_000


def put_together(pieces: Iterable[bytes]) -> bytes:
    binary = BinaryPieces()
    for piece in pieces:
        binary.write(piece)
    return binary.getvalue()


@given(st.lists(st.binary(max_size=5) | st.builds(bytes, st.integers(4000, 5000))))
def test_pieces_are_put_together_in_their_order(pieces: list[bytes]) -> None:
    assert put_together(pieces) == b"".join(pieces)


@pytest.mark.parametrize("sizes", [[1], [4095], [4096], [100_000], [1, 4096]], ids=str)
def test_it_takes_twice_the_memory_of_the_message_however_small_the_pieces(sizes: list[int]) -> None:
    rounds = range(SIZE // sum(sizes))
    assert most_held_during(lambda: put_together(bytes(size) for _ in rounds for size in sizes)) < 2.1 * SIZE
