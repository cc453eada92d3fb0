"""The payload of a data frame that is a whole message, taken in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_ws_server.protocol import frames
from trio_ws_server.protocol.text import TextDecoder

if TYPE_CHECKING:
    from trio_ws_server.protocol.deflate_streams import Decompressor


class Payload:
    """Makes of each piece what it holds of the message: unmasked, inflated, decoded. Keeps none of it."""

    __slots__ = ("_decoder", "_decompressor", "_key", "compressed")

    def __init__(self, key: bytes, *, text: bool, decompressor: Decompressor | None) -> None:
        """Begin a payload: masked unless the key is empty, compressed where there is a ``decompressor``."""
        self._key = key
        self._decoder = TextDecoder() if text else None
        self._decompressor = decompressor
        self.compressed = decompressor is not None
        if decompressor is not None:
            decompressor.start()

    def take(self, piece: bytes | memoryview, *, last: bool) -> str | bytes:
        """
        Return what the next piece holds of the message.

        Raises `Violation` or ``UnicodeDecodeError`` as soon as it cannot be right.
        """
        if self._key:
            plain = frames.mask(piece, self._key)
            turn = len(piece) % 4
            self._key = self._key[turn:] + self._key[:turn]
        else:
            plain = bytes(piece)
        if self._decompressor is not None:
            plain = self._decompressor.inflate(plain, last=last)
        return plain if self._decoder is None else self._decoder.decode(plain, last=last)
