"""Frames made by hand, right and wrong, and frames as the `websockets` library reads them."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from websockets.frames import Frame
from websockets.streams import StreamReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.extensions import Extension

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x01\x02\x03\x04"


def header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Return a frame's header as RFC 6455 section 5.2 has it, without the masking key."""
    first, mask = fin << 7 | rsv << 4 | opcode, masked << 7
    if length < 126:
        return struct.pack("!BB", first, mask | length)
    if length < 2**16:
        return struct.pack("!BBH", first, mask | 126, length)
    return struct.pack("!BBQ", first, mask | 127, length)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Return a whole frame; those to a server are masked."""
    start = header(opcode, len(payload), fin=fin, rsv=rsv, masked=masked)
    if not masked:
        return start + payload
    return start + MASK + bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))


def close_frame(code: int | None = None, reason: bytes = b"", *, masked: bool = True) -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason, masked=masked)


def errors(*, masked: bool, limit: int) -> dict[str, tuple[int, bytes]]:
    """Return what a peer may do wrong, with the close code for it, where messages may be as large as the limit."""
    make = partial(frame, masked=masked)
    close = partial(close_frame, masked=masked)
    mask = masked << 7
    return {
        "a wrong mask": (1002, frame(TEXT, b"a", masked=not masked)),
        "a reserved bit": (1002, make(TEXT, b"a", rsv=1)),
        "another reserved bit": (1002, make(PING, b"a", rsv=2)),
        "the bit of a compression not agreed on": (1002, make(TEXT, b"a", rsv=4)),
        "a reserved data opcode": (1002, make(3, b"a")),
        "a reserved control opcode": (1002, make(11)),
        "a fragmented ping": (1002, make(PING, fin=False)),
        "a fragmented close frame": (1002, make(CLOSE, fin=False)),
        "a long ping": (1002, make(PING, b"a" * 126)),
        "a long close frame": (1002, close(1000, b"a" * 124)),
        "a continuation of nothing": (1002, make(CONTINUATION, b"a")),
        "a message within a message": (1002, make(TEXT, b"a", fin=False) + make(TEXT, b"b")),
        "a length of two bytes that fits one": (1002, bytes([0x82, mask | 126, 0, 125]) + MASK),
        "a length of eight bytes that fits two": (1002, bytes([0x82, mask | 127, *[0] * 6, 1, 0]) + MASK),
        "a length of 64 bits": (1002, bytes([0x82, mask | 127, 0x80, *[0] * 7]) + MASK),
        "text that is not UTF-8": (1007, make(TEXT, b"a\xc3(")),
        "text that ends in the middle of a character": (1007, make(TEXT, b"\xe2\x82")),
        "text with a surrogate": (1007, make(TEXT, b"\xed\xa0\x80")),
        "text that goes wrong in a later fragment": (
            1007,
            make(TEXT, b"\xe2", fin=False) + make(CONTINUATION, b"("),
        ),
        "a message that is too big": (1009, make(BINARY, bytes(limit + 1))),
        "a close frame of one byte": (1002, make(CLOSE, b"\x03")),
        "a close reason that is not UTF-8": (1007, close(1000, b"\xff")),
    } | {
        f"close code {code}": (1002, close(code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65535)
    }


def frames_of(stream: bytes, *, from_client: bool, extensions: Sequence[Extension] = ()) -> list[Frame]:
    """Return the frames of which a stream consists, as the `websockets` library reads them."""
    reader = StreamReader()
    reader.feed_data(stream)
    frames: list[Frame] = []
    while reader.buffer:
        try:
            next(Frame.parse(reader.read_exact, mask=from_client, extensions=extensions))
        except StopIteration as complete:
            frames.append(complete.value)
        else:
            raise AssertionError(f"the frame after {frames} is not complete")
    return frames
