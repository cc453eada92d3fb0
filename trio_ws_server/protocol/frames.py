"""
WebSocket frames (RFC 6455 section 5.2): where they begin and end, their masks, and the simple ones encoded.

Simple are data frames that are a whole message, and control frames. All others, and whatever is wrong, are for
wsproto (`protocol.wsproto_frames`), which costs 10 times as much time. Pings and pongs are among the simple ones
because wsproto's objects take 2 KiB, and keepalive would make every idle connection hold them; close frames,
because making these objects takes 160 µs, at the end of every connection. A control frame is nothing but its
payload, and that of a close frame, if there is nothing wrong with it, can be read in one way only.
"""

from __future__ import annotations

import os
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING

from trio_ws_server.close_codes import Close, CloseCode, may_be_sent
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

# The first byte of a simple frame: its opcode, and that it is the last of its message.
TEXT: Final = 0x81
BINARY: Final = 0x82
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A

COMPRESSED: Final = 0x40
"""The bit of the first byte that says so (RFC 7692 section 6)."""

MASKED: Final = 0x100
"""The bit that stands behind those of the first byte where `locate` has found a masked frame."""

PLAIN: Final = ~(MASKED | COMPRESSED)
"""What is left of a kind of frame without both."""

_COMPRESSED_MESSAGES: Final = frozenset({TEXT | COMPRESSED, BINARY | COMPRESSED})

_INVALID = -1


@cache
def simple_kinds(*, masked: bool, compressed: bool) -> frozenset[int]:
    """Return the kinds of simple frames, as `locate` has them, on a connection with or without compression."""
    firsts = [TEXT, BINARY, CLOSE, PING, PONG]
    if compressed:
        firsts += [TEXT | COMPRESSED, BINARY | COMPRESSED]
    return frozenset(first | MASKED if masked else first for first in firsts)


def locate(data: bytes | memoryview, start: int) -> tuple[int, int, int] | None:
    """
    Find the frame that starts there: return its kind, where its payload starts, and where it ends.

    The kind is its first byte and whether it is masked, in one number; a length too long for a control frame, or of
    another form than the shortest, makes it one that is not simple. Both places may be behind the end of what has
    come. None where not even the length has.
    """
    body = start + 2
    if len(data) < body:
        return None
    kind = data[start]
    length = data[start + 1]
    if length & 0x80:
        kind |= MASKED
        length &= 0x7F
    if length > 125:
        if kind & 0x0F > 2:
            # No frame of data: wsproto refuses it without a look at the length.
            return _INVALID, body, body
        body += 2 if length == 126 else 8
        if len(data) < body:
            return None
        shortest = 126 if length == 126 else 1 << 16
        length = int.from_bytes(data[start + 2 : body], "big")
        if not shortest <= length < 1 << 63:
            kind = _INVALID
    if kind & MASKED:
        body += 4
    return kind, body, body + length


_TWO_BYTES = 126
"""The length that says that the next two bytes hold it."""

INFLATED_AT_ONCE = 4096
"""Bytes that are inflated at a time, to 4 MiB at most, which takes 20 ms or so."""


def read_messages(
    data: bytes | memoryview,
    start: int,
    most: int,
    most_bytes: int,
    max_size: int,
    inflate: Callable[[bytes], bytes] | None,
) -> tuple[list[tuple[str | bytes, int]], int, int, Violation | None]:
    """
    Read the masked frames from there on that are whole messages of less than 64 KiB.

    Stops at the first frame that is not one, or not right, or not there as a whole; at one of more than
    ``max_size`` bytes, or of more than `INFLATED_AT_ONCE` that are compressed; and after so many messages, or bytes
    of them. Returns each message with its size in bytes, the sum of the sizes, where it stopped, and what is wrong
    with a compressed message there. ``inflate`` raises `Violation` for what is damaged or inflates to too much.

    All in one loop: it takes a third of the time that a call to `locate` and its like take for each.
    """
    messages: list[tuple[str | bytes, int]] = []
    total = 0
    came = len(data)
    violation = None
    try:
        while start < came and total < most_bytes and len(messages) < most:
            first = data[start]
            if first != TEXT and first != BINARY and (inflate is None or first not in _COMPRESSED_MESSAGES):
                break
            # Longer than any, where the bit of a mask is not set.
            size = data[start + 1] ^ 0x80
            body = start + 6
            if size >= _TWO_BYTES:
                if size > _TWO_BYTES:
                    break
                size = data[start + 2] << 8 | data[start + 3]
                body = start + 8
                if size < _TWO_BYTES:
                    break
            end = body + size
            if end > came or size > max_size or (size > INFLATED_AT_ONCE and first & COMPRESSED):
                break
            payload = mask(data[body:end], data[body - 4 : body])
            if first == TEXT:
                messages.append((payload.decode(), size))
            elif first == BINARY:
                messages.append((payload, size))
            else:
                assert inflate is not None
                payload = inflate(payload)
                size = len(payload)
                messages.append((payload.decode() if first & PLAIN == TEXT else payload, size))
            total += size
            start = end
    except IndexError:
        # A head that has not come as a whole: for who reads on.
        pass
    except UnicodeDecodeError:
        # Text that is none is for who reads on, too, but what has been inflated cannot be inflated again.
        if first & COMPRESSED:
            violation = Violation(CloseCode.INVALID_DATA)
    except Violation as found:
        violation = found
    return messages, total, start, violation


# The payload of a close frame (RFC 6455 section 5.5.1)


def read_close(payload: bytes) -> Close | None:
    """Return what it says; None if there is something wrong with it."""
    if not payload:
        return Close(CloseCode.NO_STATUS_RCVD)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not may_be_sent(code):
        return None
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        return None


def close_payload(close: Close) -> bytes:
    """Return what says this; nothing at all says `CloseCode.NO_STATUS_RCVD`."""
    if close.code == CloseCode.NO_STATUS_RCVD:
        return b""
    return close.code.to_bytes(2, "big") + close.reason.encode()


# Masking (RFC 6455 section 5.3)

_INT_IS_FASTER_BELOW = 1024


def mask_in_python(data: bytes | memoryview, key: bytes | memoryview) -> bytes:
    """Mask or unmask, without the C function: 20 to 100 times slower."""
    size = len(data)
    if size < _INT_IS_FASTER_BELOW:
        keys = bytes(key) * (size // 4) + key[: size % 4]
        return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(size, "little")
    masked = bytearray(data)
    for place, byte in enumerate(key):
        masked[place::4] = masked[place::4].translate(_masked_bytes(byte))
    return bytes(masked)


@cache
def _masked_bytes(key: int) -> bytes:
    """Return what each byte becomes."""
    return bytes(byte ^ key for byte in range(256))


mask: Callable[[bytes | memoryview, bytes | memoryview], bytes]
"""Mask or unmask data with a key of four bytes."""

try:
    # It takes any buffer for a key too, whatever it says.
    from websockets.speedups import apply_mask as mask  # type: ignore[assignment]
except ImportError:
    mask = mask_in_python


# Sending

_short_headers = {
    first: [bytes([first, second]) for second in range(256)]
    for first in (TEXT, BINARY, TEXT | COMPRESSED, BINARY | COMPRESSED, CLOSE, PING, PONG)
}
_medium_header, _long_header = (Struct(form).pack for form in ("!BBH", "!BBQ"))

JOINED_SIZE = 16 * 1024
"""Bytes of a binary message that are copied to behind their header; more are sent by themselves, after it."""

SHARED_SIZE = 64 * 1024
"""Bytes of the payload of a message that is kept to be sent again, as it and its frame are."""

_last: tuple[str | bytes | None, bytes, int] = None, b"", 0
"""The last such message, its frame, and its size. One tuple, so that servers in two threads cannot mix them up."""


def payload_size(message: str | bytes) -> int:
    """Return how many bytes it takes; of a ``str`` that is ASCII, which it knows, without encoding it."""
    return len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())


def encode(first: int, payload: bytes, *, masked: bool = False) -> bytes:
    """Return the frame; a masked one under a fresh key that nobody can predict (RFC 6455 section 5.3)."""
    return b"".join(encode_in_two(first, payload, masked=masked))


def encode_in_two(first: int, payload: bytes, *, masked: bool) -> tuple[bytes, bytes]:
    """Return the frame as `encode` does, but its payload by itself: where it is not masked, the same object."""
    if not masked:
        return _header(first, 0, len(payload)), payload
    key = os.urandom(4)
    return _header(first, 0x80, len(payload)) + key, mask(payload, key)


def _header(first: int, mask_bit: int, size: int) -> bytes:
    if size < 126:
        return _short_headers[first][mask_bit | size]
    if size < 1 << 16:
        return _medium_header(first, mask_bit | 126, size)
    return _long_header(first, mask_bit | 127, size)


def encode_shared(message: str | bytes) -> tuple[bytes, int]:
    """
    Return the frame of a message, not masked, and the size of its payload in bytes.

    The frame is the same again for an object that is sent to many in a row. Raises ``UnicodeEncodeError`` for
    surrogates. All in one function: to call those above instead takes 4 % of all that echoing a small message does.
    """
    global _last
    last, frame, size = _last
    if message is not last:
        if isinstance(message, str):
            first, payload = TEXT, message.encode()
        else:
            first, payload = BINARY, message
        size = len(payload)
        frame = _short_headers[first][size] + payload if size < 126 else encode(first, payload)
        if size <= SHARED_SIZE:
            _last = message, frame, size
    return frame, size
