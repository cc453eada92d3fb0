"""Text is what Python makes of it, in bounded memory, wherever it is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.memory import most_held_during
from tests.protocol.pieces import cut, cuts
from trio_ws_server.protocol.text import TextDecoder, TextPieces, decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG = "aä中😀" * 100_000
SIZE = len(LONG.encode())


def in_pieces(data: bytes, places: Sequence[int]) -> str:
    decoder = TextDecoder()
    return "".join([decoder.decode(piece, last=False) for piece in cut(data, places)]) + decoder.decode(
        b"", last=True
    )


@given(st.text(), cuts)
def test_text_is_decoded_wherever_it_is_cut(text: str, places: Sequence[int]) -> None:
    assert in_pieces(text.encode(), places) == decoded(text.encode()) == text


@pytest.mark.parametrize("places", [[], [1], [4], [70_000, 70_001, 500_000]])
def test_long_text_is_decoded_wherever_it_is_cut(places: Sequence[int]) -> None:
    assert in_pieces(LONG.encode(), places) == decoded(LONG.encode()) == LONG


@pytest.mark.parametrize("data", [b"a\xff", LONG.encode() + b"\xff", LONG.encode()[:-1]])
def test_what_is_not_utf_8_is_an_error(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(data)
    with pytest.raises(UnicodeDecodeError):
        in_pieces(data, [3])


def test_long_text_is_decoded_in_twice_the_memory_of_the_text() -> None:
    data = ("😀" * (SIZE // 4)).encode()
    assert most_held_during(lambda: decoded(data)) < 2.2 * SIZE
    assert most_held_during(lambda: TextDecoder().decode(data, last=True)) < 2.2 * SIZE


@given(st.lists(st.text()))
def test_pieces_of_text_are_put_together(pieces: list[str]) -> None:
    text = TextPieces()
    for piece in pieces:
        text.write(piece)
    assert text.getvalue() == "".join(pieces)


def test_line_breaks_and_long_pieces_stay_as_they_are() -> None:
    text = TextPieces()
    for piece in ("a\r", "\n\n", LONG, "\r"):
        text.write(piece)
    assert text.getvalue() == "a\r\n\n" + LONG + "\r"
