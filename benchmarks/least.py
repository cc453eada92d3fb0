"""
The least that a server on Trio can do: a measure of what Trio, Python and the kernel leave of a goal.

It does what Trio, the kernel and the application ask for, and of what the protocol asks for only what the small
messages of this load need. It checks nothing, limits nothing, waits for nobody who reads slowly, cancels nothing,
pings nobody, and never gives way: nobody could use it. A goal that it hardly reaches is hardly in reach for a
server that does all that. Requests are parsed by h11, as ours are.
"""

from __future__ import annotations

import base64
import hashlib
import select
import socket
import sys
import zlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import trio
from websockets.speedups import apply_mask

from benchmarks import apps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TAIL = b"\x00\x00\xff\xff"
_TEXT, _COMPRESSED_TEXT, _CLOSE = 0x81, 0xC1, 0x88
_CLOSE_FRAME = b"\x88\x02\x03\xe8"

_buffer = memoryview(bytearray(256 * 1024))
_epoll = select.epoll()
_lines: dict[int, Line] = {}
_last: tuple[str, bytes] = "", b""


async def _poll() -> None:
    """Tell connections what has come."""
    while True:
        await trio.lowlevel.wait_readable(_epoll)
        for fd, _ in _epoll.poll(0, 256):
            _lines[fd].read()


class Line:
    """A connection after its handshake."""

    __slots__ = ("_compressor", "_decompressor", "_held", "_messages", "_rest", "_sock", "_task")

    def __init__(self, sock: socket.socket, *, deflate: bool) -> None:
        self._sock = sock
        self._messages: deque[str | None] = deque()
        self._task: trio.lowlevel.Task | None = None
        self._held: list[bytes] = []
        self._rest = b""
        self._compressor = zlib.compressobj(wbits=-12, memLevel=5) if deflate else None
        self._decompressor = zlib.decompressobj(-15) if deflate else None
        _lines[sock.fileno()] = self
        _epoll.register(sock, select.EPOLLIN)

    def read(self) -> None:
        """Take what has come, and wake the task that waits for it."""
        size = self._sock.recv_into(_buffer)
        if size:
            self._read_frames(self._rest + _buffer[:size].tobytes())
        else:
            self._messages.append(None)
        if self._task is not None and self._messages:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def _read_frames(self, data: bytes) -> None:
        start, came = 0, len(data)
        while came - start >= 6:
            first, size, body = data[start], data[start + 1] & 0x7F, start + 6
            if size == 126:
                size, body = data[start + 2] << 8 | data[start + 3], start + 8
            end = body + size
            if end > came:
                break
            payload = apply_mask(data[body:end], data[body - 4 : body])
            if first == _TEXT:
                self._messages.append(payload.decode())
            elif first == _COMPRESSED_TEXT and self._decompressor is not None:
                self._messages.append(self._decompressor.decompress(payload + _TAIL).decode())
            elif first == _CLOSE:
                self._messages.append(None)
            start = end
        self._rest = data[start:]

    async def message(self) -> str | None:
        """Return the next message, None at the end."""
        if not self._messages:
            if self._held:
                held, self._held = self._held, []
                self._sock.send(b"".join(held))
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(_give_up)
        return self._messages.popleft()

    async def send(self, message: str) -> None:
        """Send a message, together with others while more is to be answered."""
        frame = self._frame(message)
        if self._messages:
            self._held.append(frame)
        elif self._held:
            held, self._held = self._held, []
            self._sock.send(b"".join([*held, frame]))
        else:
            self._sock.send(frame)

    def _frame(self, message: str) -> bytes:
        global _last
        last, frame = _last
        if message is last:
            return frame
        first, payload = _TEXT, message.encode()
        if self._compressor is not None:
            first = _COMPRESSED_TEXT
            payload = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
        size = len(payload)
        head = bytes((first, size)) if size < 126 else bytes((first, 126, size >> 8, size & 0xFF))
        frame = head + payload
        if self._compressor is None:
            _last = message, frame
        return frame

    def close(self) -> None:
        """Send a close frame, and wait for nothing."""
        self._sock.send(_CLOSE_FRAME)
        del _lines[self._sock.fileno()]
        self._sock.close()


def _give_up(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class Asgi:
    """A connection as ASGI has it, without a look at what the application says."""

    __slots__ = ("_connecting", "_line")

    def __init__(self, line: Line) -> None:
        self._line = line
        self._connecting = True

    async def receive(self) -> dict[str, Any]:
        """Return the next event."""
        if self._connecting:
            return {"type": "websocket.connect"}
        message = await self._line.message()
        if message is None:
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "websocket.receive", "text": message, "bytes": None}

    async def send(self, event: dict[str, Any]) -> None:
        """Send a message, once the connection is accepted, as it was before."""
        if self._connecting:
            self._connecting = False
        else:
            await self._line.send(event["text"])


class Native:
    """A connection as native handlers have it."""

    __slots__ = ("_message", "send")

    def __init__(self, line: Line) -> None:
        self._message = line.message
        self.send = line.send

    def __aiter__(self) -> Native:
        """Iterate over the messages."""
        return self

    async def __anext__(self) -> str:
        """Return the next message."""
        if (message := await self._message()) is None:
            raise StopAsyncIteration
        return message


def _accept(sock: socket.socket, request_head: bytes, *, deflate: bool) -> Line:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(request_head)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    key = dict(request.headers)[b"sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    extension = (
        b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12\r\n" if deflate else b""
    )
    sock.send(
        b"HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % (extension, accept)
    )
    return Line(sock, deflate=deflate)


async def _over_asgi(app: Callable[..., Awaitable[None]], line: Line) -> None:
    connection = Asgi(line)
    await app({"type": "websocket"}, connection.receive, connection.send)


async def _natively(handler: Callable[..., Awaitable[None]], line: Line) -> None:
    await handler(Native(line))


_APPS = {
    ("asgi", "echo"): partial(_over_asgi, apps.echo),
    ("asgi", "fan-out"): partial(_over_asgi, apps.fan_out),
    ("native", "echo"): partial(_natively, apps.native_echo),
    ("native", "fan-out"): partial(_natively, apps.native_fan_out),
}


async def _serve(stream: trio.SocketStream, app: Callable[[Line], Awaitable[None]], *, deflate: bool) -> None:
    if request_head := await stream.receive_some(65536):
        connected = stream.socket
        sock = socket.socket(connected.family, connected.type, connected.proto, fileno=connected.detach())
        sock.setblocking(False)
        line = _accept(sock, bytes(request_head), deflate=deflate)
        await app(line)
        line.close()


async def _main(api: str, app: str, port: int, *, deflate: bool) -> None:
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=2048)
    serve = partial(_serve, app=_APPS[api, app], deflate=deflate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_poll)
        while True:
            nursery.start_soon(serve, await listener.accept())


if __name__ == "__main__":
    _api, _app, _port, _compression = sys.argv[1:]
    trio.run(partial(_main, _api, _app, int(_port), deflate=_compression == "deflate"))
