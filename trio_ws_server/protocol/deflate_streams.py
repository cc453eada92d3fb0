"""
The zlib streams of permessage-deflate: what a connection's messages are compressed to, and inflated from.

Nothing is inflated further than the largest message allowed.

A connection that has had little to compress or to inflate, as most that are idle, holds no zlib streams between
messages, but what it takes to make them again, as they were: `LITTLE` bytes at most. With more, or after so many
messages that this would be much work, they stay. The compressor, of 38,952 bytes at the defaults, is let go of
again where nothing is compressed from one keepalive ping to the next. The message after that takes no longer, but
1 KiB of JSON becomes 366 bytes instead of 256. The decompressor, of 11,488 bytes, then stays, unless the peer has
agreed not to refer back.

Python's zlib, since others are faster with large messages alone. Among 100 connections, 1 KiB of JSON compresses
in 28 µs, and a compressor holds 37 KiB. With zlib-ng (1.1), whose hash table takes 128 KiB at any memory level,
these are 45 µs and 160 KiB. isal (1.9) has no levels above 3, and does not tell what is left where output is
bounded.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING

from trio_ws_server.close_codes import CloseCode
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Generator

    from trio_ws_server.config import Config

LARGEST_WINDOW = 15
"""Bits of its size (RFC 7692 section 7.1.2)."""

# RFC 7692 section 7.2.1: the end of every flushed message, cut off by the sender, put back by the receiver.
_TAIL = b"\x00\x00\xff\xff"

# zlib hands back what follows a final block as a copy. Pieces keep that copy small, else the time that a
# message of empty final blocks takes, 2 bytes each, would grow with the square of its size.
_PIECE_SIZE = 4096

LITTLE = 4096
"""Bytes up to which what a stream has had is kept in its place, and fed to another one at the next message."""

FED_AGAIN = 32 * 1024
"""
Bytes that a connection's decompressors are fed again at most, all messages together.

What a peer sends can be a hundred times as much work as its size says: a block that says what its symbols are, and
has none.
"""

STEP_SIZE = 32 * 1024
"""Bytes compressed in one step, of 1 ms or so: a message of 16 MiB takes half a second."""


class Compressor:
    """The stream of what is sent (RFC 7692 section 7.2.1)."""

    __slots__ = ("_ahead", "_config", "_idle", "_past", "_stream", "keeps_context", "min_size", "window_bits")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ahead: tuple[zlib._Compress, list[bytes]] | None = None
        self._idle = True
        self._past = b""
        """What a fresh stream is to refer back to, while there is none."""
        self._stream: zlib._Compress | None = None
        self.min_size = config.deflate_min_size
        """Bytes of the smallest message that is compressed."""
        self.window_bits = config.deflate_window_bits
        self.keeps_context = True

    @property
    def steps_above(self) -> int:
        """The size above which a message is to be compressed ahead of its sending, step by step."""
        return max(STEP_SIZE, self.min_size)

    def compress(self, data: bytes) -> bytes:
        """Return the payload of the frame to send."""
        if self._ahead is None:
            stream = self._stream or self._fresh()
            pieces = [stream.compress(data)]
        else:
            (stream, pieces), self._ahead = self._ahead, None
        pieces.append(stream.flush(zlib.Z_SYNC_FLUSH).removesuffix(_TAIL))
        if stream is not self._stream and self.keeps_context:
            self._keep(stream, data)
        self._idle = False
        return b"".join(pieces)

    def _keep(self, stream: zlib._Compress, data: bytes) -> None:
        """Keep what the next message is to refer back to."""
        if self._stream is None and len(self._past) + len(data) <= LITTLE:
            self._past += data
        else:
            self._stream, self._past = stream, b""

    def compress_ahead(self, data: bytes) -> Generator[None]:
        """Do the work of the next `compress`, step by step; it is undone if closed before the end."""
        # On a stream of its own, which is the connection's once the message is sent: nothing is to be undone.
        stream = self._fresh() if self._stream is None else self._stream.copy()
        pieces = []
        for start in range(0, len(data), STEP_SIZE):
            pieces.append(stream.compress(data[start : start + STEP_SIZE]))
            yield
        self._ahead = stream, pieces

    def forget_if_idle(self) -> None:
        """
        Let go of the stream if no message was compressed since this was last called.

        The next message is then compressed without what came before it. The peer need not know: to refer to that
        is a right of the sender's (RFC 7692 section 7.2.1).
        """
        if self._idle:
            self._stream, self._past = None, b""
        self._idle = True

    def _fresh(self) -> zlib._Compress:
        return zlib.compressobj(
            self._config.deflate_level,
            zlib.DEFLATED,
            -self.window_bits,
            self._config.deflate_mem_level,
            zdict=self._past,
        )


class Decompressor:
    """The stream of what is received (RFC 7692 section 7.2.2), inflated to a byte above the limit at most."""

    __slots__ = (
        "_fed_again",
        "_max_message_size",
        "_past",
        "_past_inflated",
        "_room",
        "_stream",
        "keeps_context",
        "window_bits",
    )

    def __init__(self, max_message_size: int) -> None:
        # zlib counts in ssize_t, and is asked for one byte more than there is room for.
        self._max_message_size = min(max_message_size, sys.maxsize - 1)
        self._room = 0
        self._stream: zlib._Decompress | None = None
        self._past: bytes | None = b""
        """All that the stream has been fed with; None where it stays, since that is too much to be fed again."""
        self._past_inflated = 0
        """Bytes that it was inflated to."""
        self._fed_again = 0
        self.window_bits = LARGEST_WINDOW
        self.keeps_context = True

    def start(self) -> None:
        """Begin a message."""
        self._room = self._max_message_size

    def inflate_message(self, payload: bytes) -> bytes:
        """Return what the whole payload of a message inflates to. Raises `Violation`."""
        self.start()
        return self.inflate(payload, last=True)

    def inflate(self, data: bytes, *, last: bool) -> bytes:
        """Return what the next data inflates to, and if it is the message's last, its end. Raises `Violation`."""
        inflated = []
        for start in range(0, len(data) + last, _PIECE_SIZE):
            piece = data[start : start + _PIECE_SIZE]
            ends = last and len(piece) < _PIECE_SIZE
            if ends:
                piece += _TAIL
            while piece:
                if self._stream is None:
                    if ends and piece == _TAIL and not self._past:
                        # There is no block to end: the payload was empty, or stopped right after a final block.
                        break
                    self._stream = self._as_it_was()
                try:
                    # Asked for a byte too many, zlib either passes the limit or takes in all of the piece.
                    inflated.append(self._stream.decompress(piece, self._room + 1))
                except zlib.error:
                    raise Violation(CloseCode.INVALID_DATA) from None
                self._room -= len(inflated[-1])
                if self._room < 0:
                    raise Violation(CloseCode.MESSAGE_TOO_BIG)
                if self._past is not None:
                    self._remember(piece, len(inflated[-1]))
                # Sections 7.2.1 and 7.2.3.4: a final block (BFINAL) ends the stream, and at the next byte
                # another one begins, with an empty window: a sender on zlib cannot begin it otherwise.
                piece = self._stream.unused_data
                if self._stream.eof:
                    self._forget()
        if last:
            if not self.keeps_context:
                self._forget()
            elif self._past is not None:
                self._stream = None
        return b"".join(inflated)

    def _as_it_was(self) -> zlib._Decompress:
        """Make the stream anew: fed with the same again, it is the same, even within a block."""
        stream = zlib.decompressobj(-self.window_bits)
        if self._past:
            self._fed_again += len(self._past)
            stream.decompress(self._past)
        return stream

    def _remember(self, piece: bytes, inflated: int) -> None:
        assert self._past is not None
        self._past += piece
        self._past_inflated += inflated
        size = len(self._past)
        if size + self._past_inflated > LITTLE or self._fed_again + size > FED_AGAIN:
            self._past = None

    def _forget(self) -> None:
        """Have the next block begin a stream."""
        self._stream, self._past, self._past_inflated = None, b"", 0
