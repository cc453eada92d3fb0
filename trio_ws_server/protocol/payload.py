"""The payload of a data frame that is a whole message, taken in pieces."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING

from wsproto.frame_protocol import CloseReason

from trio_ws_server.close_codes import CloseCode
from trio_ws_server.protocol import frames
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from codecs import IncrementalDecoder

    from trio_ws_server.protocol.deflate import Deflate

_Utf8Decoder = getincrementaldecoder("utf-8")


def decoded(payload: bytes) -> str:
    """Return the text of a whole message. Raises `Violation` if it is none."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Violation(CloseCode.INVALID_DATA) from None


def _checked(inflated: bytes | CloseReason) -> bytes:
    if isinstance(inflated, CloseReason):
        raise Violation(inflated)
    return inflated


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
        """Return what the next piece holds of the message. Raises `Violation` as soon as that cannot be right."""
        if self._key:
            plain = frames.mask(piece, self._key)
            turn = len(piece) % 4
            self._key = self._key[turn:] + self._key[:turn]
        else:
            plain = piece
        if self._deflate is not None:
            plain = _checked(self._deflate.inflate(plain))
            if last:
                plain += _checked(self._deflate.finish_message())
        if self._decoder is None:
            return plain
        try:
            return self._decoder.decode(plain, last)
        except UnicodeDecodeError:
            raise Violation(CloseCode.INVALID_DATA) from None
