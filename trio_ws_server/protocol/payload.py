"""The payload of a data frame that is a whole message, taken in pieces."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING

from trio_ws_server.protocol import frames

if TYPE_CHECKING:
    from codecs import IncrementalDecoder

    from trio_ws_server.protocol.deflate import Deflate

_Utf8Decoder = getincrementaldecoder("utf-8")

_SLICE_SIZE = 64 * 1024
"""Bytes of text that are decoded at a time. CPython takes four times as much memory for it, until it is done."""


class Payload:
    """Makes of each piece what it holds of the message: unmasked, inflated, decoded. Keeps none of it."""

    __slots__ = ("_decoder", "_deflate", "_key")

    def __init__(self, key: bytes, *, text: bool, deflate: Deflate | None) -> None:
        """Begin a payload: masked unless the key is empty, compressed where there is a ``deflate``."""
        self._key = key
        self._decoder: IncrementalDecoder | None = _Utf8Decoder() if text else None
        self._deflate = deflate
        if deflate is not None:
            deflate.begin_message()

    def take(self, piece: bytes, *, last: bool) -> str | bytes:
        """
        Return what the next piece holds of the message.

        Raises `Violation` or ``UnicodeDecodeError`` as soon as it cannot be right.
        """
        if self._key:
            plain = frames.mask(piece, self._key)
            turn = len(piece) % 4
            self._key = self._key[turn:] + self._key[:turn]
        else:
            plain = piece
        if self._deflate is not None:
            plain = self._deflate.inflate(plain, last=last)
        return plain if self._decoder is None else _decoded(self._decoder, plain, last=last)


def decoded(payload: bytes) -> str:
    """Return the text of a whole message. Raises ``UnicodeDecodeError``."""
    return payload.decode() if len(payload) <= _SLICE_SIZE else _decoded(_Utf8Decoder(), payload, last=True)


def _decoded(decoder: IncrementalDecoder, data: bytes, *, last: bool) -> str:
    slices = (data[start : start + _SLICE_SIZE] for start in range(0, len(data), _SLICE_SIZE))
    return "".join([*map(decoder.decode, slices), decoder.decode(b"", last)])
