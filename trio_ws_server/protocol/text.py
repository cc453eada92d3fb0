"""Text that comes as UTF-8 or in pieces: decoded, and put together, in memory of a small multiple of its size."""

from __future__ import annotations

from codecs import getincrementaldecoder
from io import StringIO

_Decoder = getincrementaldecoder("utf-8")

_SLICE_SIZE = 64 * 1024
"""Bytes decoded at a time. For the time of it CPython takes up to four times as much memory."""

_SMALL = 4096
"""Characters. In Python 3.11 a StringIO keeps each string that is written as an object, of 50 bytes at least."""


class TextDecoder:
    """Decodes UTF-8 wherever it is cut."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = _Decoder()

    def decode(self, data: bytes, *, last: bool) -> str:
        """Return the text, up to the last whole character. Raises ``UnicodeDecodeError`` as soon as it is none."""
        if len(data) <= _SLICE_SIZE:
            return self._decoder.decode(data, last)
        slices = (data[start : start + _SLICE_SIZE] for start in range(0, len(data), _SLICE_SIZE))
        return "".join([*map(self._decoder.decode, slices), self._decoder.decode(b"", last)])


def decoded(data: bytes) -> str:
    """Return the text. Raises ``UnicodeDecodeError``."""
    return data.decode() if len(data) <= _SLICE_SIZE else TextDecoder().decode(data, last=True)


class TextPieces:
    """Puts pieces of text together, however small and many they are."""

    __slots__ = ("_recent", "_text")

    def __init__(self) -> None:
        self._text = StringIO()
        self._recent = ""

    def write(self, piece: str) -> None:
        """Add a piece."""
        self._recent += piece
        if len(self._recent) >= _SMALL:
            self._text.write(self._recent)
            self._recent = ""

    def getvalue(self) -> str:
        """Return the whole."""
        self._text.write(self._recent)
        self._recent = ""
        return self._text.getvalue()
