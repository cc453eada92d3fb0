"""What the load sends, prepared: RFC 6455 sections 1.3 and 5, and 7.2.1 of RFC 7692 for what is compressed."""

from __future__ import annotations

import json
import string
import zlib
from random import Random

_FIN, _RSV1, _MASKED = 0x80, 0x40, 0x80
_TEXT, _BINARY, _CLOSE = 0x1, 0x2, 0x8
_FLUSH_MARKER = b"\x00\x00\xff\xff"
_WINDOW_BITS = 12

EXTENSION = "permessage-deflate; client_max_window_bits"
"""What browsers offer."""

CLOSE_FRAME = bytes([_FIN | _CLOSE, _MASKED | 2, 0, 0, 0, 0]) + (1000).to_bytes(2, "big")


def opening_request(port: int, *, deflate: bool = False) -> bytes:
    """Return the request of an opening handshake at a port of 127.0.0.1."""
    head = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    if deflate:
        head.append(f"Sec-WebSocket-Extensions: {EXTENSION}")
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode()


def texts(count: int, size: int) -> list[bytes]:
    """Return frames of text messages of so many bytes, all different."""
    random = Random(0)
    return [
        _frame(_TEXT, "".join(random.choices(string.ascii_letters, k=size)).encode(), random)
        for _ in range(count)
    ]


def binaries(count: int, size: int) -> list[bytes]:
    """Return frames of binary messages of so many bytes, all different."""
    random = Random(0)
    return [_frame(_BINARY, random.randbytes(size), random) for _ in range(count)]


def compressed_json(count: int, size: int) -> list[bytes]:
    """
    Return frames of text messages, JSON of so many bytes, all different, compressed.

    Each is compressed by itself, which is as valid where the server keeps its window from message to message, and
    so they can be sent in any order, and again and again.
    """
    random = Random(0)
    frames = []
    for number in range(count):
        compressor = zlib.compressobj(wbits=-_WINDOW_BITS)
        payload = compressor.compress(json_text(number, size, random)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        frames.append(_frame(_TEXT, payload.removesuffix(_FLUSH_MARKER), random, rsv=_RSV1))
    return frames


def json_text(number: int, size: int, random: Random) -> bytes:
    """Return a message as chats and tickers have them: names that recur, values that don't."""
    words = ["open", "high", "low", "close", "volume", "Trio", "message", "room", "user", "time", "the", "of"]
    entries: list[dict[str, object]] = []
    document = {"type": "update", "sequence": number, "entries": entries, "padding": ""}
    while len(json.dumps(document)) < size - 120:
        entries.append(
            {
                "id": random.randrange(10**9),
                "price": round(random.uniform(1, 1000), 2),
                "text": " ".join(random.choices(words, k=4)),
            }
        )
    document["padding"] = "." * (size - len(json.dumps(document)))
    return json.dumps(document).encode()


def _frame(opcode: int, payload: bytes, random: Random, rsv: int = 0) -> bytes:
    key = random.randbytes(4)
    size = len(payload)
    if size < 126:
        length = bytes([_MASKED | size])
    elif size < 1 << 16:
        length = bytes([_MASKED | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([_MASKED | 127]) + size.to_bytes(8, "big")
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    masked = (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")
    return bytes([_FIN | rsv | opcode]) + length + key + masked
