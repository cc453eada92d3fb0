"""
Clients that break the rules, stall, vanish or give up, on raw connections.

Each either drops its connection, or stays until the server has ended it, which must not take longer than
`soak.servers.PATIENCE`. What the server made of it, where that is certain, is looked at.
"""

from __future__ import annotations

import zlib
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from soak.servers import MAX_MESSAGE_SIZE, PATIENCE, TIMEOUTS, Line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from random import Random

    from soak.servers import Server

TEXT, BINARY, CLOSE, PING = 0x1, 0x2, 0x8, 0x9


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False, more: int = 0) -> bytes:
    """Return a frame, masked with zeros, that declares its payload to be longer, by ``more``, than it is."""
    length = len(payload) + more
    extended = b"" if length < 126 else length.to_bytes(2 if length < 65536 else 8, "big")
    short = length if length < 126 else 126 if length < 65536 else 127
    return bytes([fin << 7 | rsv1 << 6 | opcode, 0x80 | short]) + extended + bytes(4) + payload


def upgrade(path: str, *, deflate: bool = True) -> bytes:
    """Return the request of a WebSocket handshake, which offers permessage-deflate or not."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *["Sec-WebSocket-Extensions: permessage-deflate"] * deflate,
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def deflated(payload: bytes) -> bytes:
    """Return a payload compressed as RFC 7692 section 7.2.1 says."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


async def _receive_head(line: Line) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        data = await line.stream.receive_some(65536)
        assert data, f"the end came before that of a response's head: {received!r}"
        received += data
    return received


@asynccontextmanager
async def _open(server: Server, path: str) -> AsyncGenerator[Line]:
    async with server.dial() as line:
        await line.stream.send_all(upgrade(path))
        head = await _receive_head(line)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield line


async def _expect_close(line: Line, code: int) -> None:
    """Read to the end, and see that the last frame is a close frame with this code."""
    received = b""
    try:
        with trio.fail_after(PATIENCE):
            while data := await line.stream.receive_some(65536):
                received = received[-200:] + data
    except trio.BrokenResourceError as exc:
        raise AssertionError(f"the connection broke off after {received!r}") from exc
    assert b"\x88" in received, f"no close frame came, but {received!r}"
    _, _, close = received.rpartition(b"\x88")
    assert close[1:3] == code.to_bytes(2, "big"), f"the close frame says {close!r}, not {code}"


# Resets and ends, in all states.


_PATHS = "/cancel", "/close", "/echo", "/fail", "/fail-in-a-task", "/ignore", "/leave", "/spawn"


def _some_bytes(random: Random, *, paths: Sequence[str] = _PATHS) -> bytes:
    """Return what a client could have sent when it goes: a part of a conversation, or all of it."""
    frames = [
        frame(TEXT, b"hello"),
        frame(TEXT, b"hel", fin=False),
        frame(BINARY, random.randbytes(1000)),
        frame(BINARY, random.randbytes(100_000)),
        frame(BINARY, b"half", more=1000),
        frame(TEXT, deflated(b"hello" * 1000), rsv1=True),
        frame(PING, b"anyone?"),
        frame(CLOSE, b"\x03\xe8"),
    ]
    conversation = upgrade(random.choice(paths)) + b"".join(random.choices(frames, k=random.randint(0, 10)))
    return conversation[: random.randint(0, len(conversation))] if random.random() < 0.5 else conversation


_PATHS_TO_LEAVE = *_PATHS, "/flood"
"""
Not for clients that stay and read: a handler that only sends cannot see, behind an inbox that it leaves full, that
their side has ended.
"""


async def resetting(server: Server, random: Random) -> None:
    async with server.dial() as line:
        await line.stream.send_all(_some_bytes(random, paths=_PATHS_TO_LEAVE))
        await trio.sleep(random.expovariate(20))
        await line.reset()


async def resetting_before_tls(server: Server, random: Random) -> None:
    async with await trio.open_tcp_stream(*server.process.address) as tcp:
        await tcp.send_all(random.randbytes(random.randint(0, 100)))
        await Line(tcp, tcp).reset()


async def closing_abruptly(server: Server, random: Random) -> None:
    """Close the socket: later bytes of the server are answered with RST."""
    async with server.dial() as line:
        await line.stream.send_all(_some_bytes(random, paths=_PATHS_TO_LEAVE))
        await trio.sleep(random.expovariate(20))
        await line.tcp.aclose()


async def half_closing(server: Server, random: Random) -> None:
    """End this side of TCP, without TLS's closure alert or WebSocket's close frame, and read to the end."""
    async with server.dial() as line:
        await line.stream.send_all(_some_bytes(random))
        await line.tcp.send_eof()
        await line.ended()


# Vanishing: the connection stays, and nothing comes any more.


async def vanishing(server: Server, random: Random) -> None:
    async with server.dial() as line:
        await line.stream.send_all(_some_bytes(random))
        await trio.sleep(random.uniform(0, PATIENCE / 2))
        await line.ended()


async def stalled_reader(server: Server, random: Random) -> None:
    """Have the server send, and take nothing until it must have given up."""
    async with _open(server, "/flood") as line:
        await trio.sleep(TIMEOUTS["write"] + TIMEOUTS["ws-close"] + 1)
        await line.ended()


async def never_answering_close(server: Server, random: Random) -> None:
    async with _open(server, random.choice(("/close", "/fail", "/leave"))) as line:
        await line.stream.send_all(frame(TEXT, b"go"))
        await line.ended()


async def slow_head(server: Server, random: Random) -> None:
    async with server.dial() as line:
        assert await _ended_while_dripping(line, upgrade("/echo")[:-1], seconds=3 * TIMEOUTS["handshake"])


async def slow_body(server: Server, random: Random) -> None:
    async with server.dial() as line:
        await line.stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert await _ended_while_dripping(line, bytes(100), seconds=3 * TIMEOUTS["body"])


async def slow_frame(server: Server, random: Random) -> None:
    """Send a byte now and then: a live client, however slow."""
    async with _open(server, "/echo") as line:
        payload = frame(BINARY, random.randbytes(50), more=1000)
        assert not await _ended_while_dripping(line, payload, seconds=random.uniform(0, 10))
        await line.reset()


async def _ended_while_dripping(line: Line, data: bytes, *, seconds: float) -> bool:
    """Send the data in ten pieces over so many seconds; return whether the server ended the connection before."""
    size = -(-len(data) // 10)
    pieces = iter([data[start : start + size] for start in range(0, len(data), size)])

    async def drip() -> None:
        with suppress(trio.BrokenResourceError):
            for piece in pieces:
                await line.stream.send_all(piece)
                await trio.sleep(seconds / 10)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        await line.ended()
        nursery.cancel_scope.cancel()
    return next(pieces, None) is not None


# Garbage.


async def garbage_for_a_request(server: Server, random: Random) -> None:
    async with server.dial() as line:
        await line.stream.send_all(random.randbytes(random.randint(1, 10_000)) + b"\r\n\r\n")
        await line.ended()


BROKEN_REQUESTS = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\nHost : x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + bytes(100_000),
)


async def broken_request(server: Server, random: Random) -> None:
    async with server.dial() as line:
        await line.stream.send_all(random.choice(BROKEN_REQUESTS))
        head = await _receive_head(line)
        assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505")), head
        await line.ended()


async def garbage_for_frames(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        await line.stream.send_all(random.randbytes(random.randint(100, 10_000)))
        await line.tcp.send_eof()
        await line.ended()


async def protocol_error(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        await line.stream.send_all(
            random.choice((b"\xff\xff", b"\x81\x00", frame(3), frame(0), frame(PING, bytes(126))))
        )
        await _expect_close(line, 1002)


async def oversized_message(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        pieces = frame(BINARY, bytes(1000), fin=False) * random.randint(0, 1)
        await line.stream.send_all(pieces + frame(0 if pieces else BINARY, more=MAX_MESSAGE_SIZE + 1))
        await _expect_close(line, 1009)


BOMB = frame(TEXT, deflated(bytes(100 * MAX_MESSAGE_SIZE)), rsv1=True)


async def bomb(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        await line.stream.send_all(BOMB)
        await _expect_close(line, 1009 if server.deflate else 1002)


# Floods.


async def ping_flood(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        for _ in range(10):
            await line.stream.send_all(frame(PING, random.randbytes(125)) * 100)
        await line.stream.send_all(frame(CLOSE, b"\x03\xe8"))
        await _expect_close(line, 1000)


async def flood_of_tiny_fragments(server: Server, random: Random) -> None:
    async with _open(server, "/echo") as line:
        pieces = frame(TEXT, b"a", fin=False) + frame(0, b"b", fin=False) * 2000
        await line.stream.send_all(pieces + frame(0, b"c") + frame(CLOSE, b"\x03\xe8"))
        await _expect_close(line, 1000)
