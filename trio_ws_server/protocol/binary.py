"""Binary messages that come in pieces: put together in memory of twice their size."""

from __future__ import annotations

_SMALL = 4096
"""Bytes. What is smaller would take more as an object of its own than it holds."""


class BinaryPieces:
    """Puts pieces of a message together, however small and many they are: copies large ones once, at the end."""

    __slots__ = ("_pieces", "_recent")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._recent = bytearray()

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        if len(piece) < _SMALL:
            self._recent += piece
            if len(self._recent) >= _SMALL:
                self._settle()
        else:
            self._settle()
            self._pieces.append(piece)

    def getvalue(self) -> bytes:
        """Return the whole."""
        self._settle()
        return b"".join(self._pieces)

    def _settle(self) -> None:
        if self._recent:
            self._pieces.append(bytes(self._recent))
            self._recent.clear()
