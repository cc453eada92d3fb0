"""
What the parts of the server cost, next to work that stays what it is: ``benchmarks/micro``, a guard in CI.

A cost is a ratio of CPU times, of an operation to that of a yardstick: each the least of many short repeats, in
turns. What else the machine does can only make a repeat longer, so the least of enough of them is what the work
itself takes, and the ratio hardly depends on the machine. Each has a bound; one that is beyond it is repeated more
often, and fails if it stays there.

A bound is a third to two thirds above what the operation costs: where a change makes that less, the bound goes down
with it.
"""

from __future__ import annotations

import math
import socket
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from benchmarks import apps, frames, yardsticks
from trio_ws_server import serve
from trio_ws_server.config import Config
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.websocket import WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    Batch = Callable[[], Awaitable[None]]
    Yardstick = Callable[[], AbstractContextManager[Callable[[int], None]]]

REPEATS = 100
MOST_REPEATS = 1000

_KIB = 1024
_SECONDS = 0.002
"""Of a repeat, about: less than the time for which a core usually stays with a process."""


class Benchmark(NamedTuple):
    """An operation, done so many times in a batch."""

    title: str
    operations: int
    batch: Callable[[], AbstractAsyncContextManager[Batch]]
    yardstick: Yardstick
    bound: float


@asynccontextmanager
async def receiving(sent: list[bytes], *, deflate: bool = False) -> AsyncGenerator[Batch]:
    """Have the state machine read frames that came in one piece."""
    protocol = _protocol(deflate=deflate)
    data, count = b"".join(sent), len(sent)

    async def batch() -> None:
        protocol.receive_data(data)
        for _ in range(count):
            protocol.next_event()

    yield batch


@asynccontextmanager
async def sending(messages: list[str | bytes], *, deflate: bool = False) -> AsyncGenerator[Batch]:
    """Have the state machine make frames."""
    protocol = _protocol(deflate=deflate)

    async def batch() -> None:
        for message in messages:
            protocol.send_message(message)

    yield batch


def _protocol(*, deflate: bool) -> WebSocketProtocol:
    config = Config(per_message_deflate=deflate)
    extension = None
    if deflate:
        extension = Deflate(config)
        extension.accept(frames.EXTENSION)
    return WebSocketProtocol(config, client=False, deflate=extension)


class Client(NamedTuple):
    """A client in the process of the server, which only makes system calls, and lets the server run in between."""

    socket: socket.socket

    @classmethod
    def connect(cls, address: tuple[str, int]) -> Client:
        """Connect, which the kernel does without the server; ask for a WebSocket."""
        connection = socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        connection.send(frames.opening_request(address[1]))
        return cls(connection)

    async def receive(self, size: int) -> None:
        """Wait until so many bytes have come, or the end."""
        while size > 0:
            data = await self._receive_some()
            size = size - len(data) if data else 0

    async def receive_response(self) -> None:
        """Wait until the opening handshake is done."""
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += await self._receive_some()

    async def _receive_some(self) -> bytes:
        while True:
            try:
                return self.socket.recv(64 * _KIB)
            except BlockingIOError:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[tuple[str, int]]:
    """Serve on a free port."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, "127.0.0.1", 0, access_log=False))
        yield server.addresses[0]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def echoing(app: Any, clients: int, in_flight: int) -> AsyncGenerator[Batch]:
    """Have the whole server echo 64 bytes, so many for each client at a time."""
    data = b"".join(frames.texts(in_flight, 64))
    reply_size = in_flight * (2 + 64)

    async with serving(app) as address:
        connected = [Client.connect(address) for _ in range(clients)]
        for client in connected:
            await client.receive_response()

        async def batch() -> None:
            for client in connected:
                client.socket.send(data)
            for client in connected:
                await client.receive(reply_size)

        yield batch
        for client in connected:
            client.socket.close()


@asynccontextmanager
async def connecting(app: Any, clients: int) -> AsyncGenerator[Batch]:
    """Have so many clients at a time connect, have a message echoed, and close."""
    (message,) = frames.texts(1, 64)

    async with serving(app) as address:

        async def batch() -> None:
            connected = [Client.connect(address) for _ in range(clients)]
            for client in connected:
                await client.receive_response()
                client.socket.send(message)
            for client in connected:
                await client.receive(2 + 64)
                client.socket.send(frames.CLOSE_FRAME)
            for client in connected:
                await client.receive(sys.maxsize)
                client.socket.close()

        yield batch


_TEXTS: list[str | bytes] = [f"{number:064}" for number in range(16)]
_JSON: list[str | bytes] = [frames.json_text(number, _KIB, Random(number)).decode() for number in range(16)]
_BYTES: list[str | bytes] = [bytes([number]) * 64 * _KIB for number in range(4)]

_DEFLATE = partial(receiving, frames.compressed_json(16, _KIB), deflate=True)

BENCHMARKS = [
    Benchmark("receive 64 B", 16, partial(receiving, frames.texts(16, 64)), yardsticks.python, 7.0),
    Benchmark("send 64 B", 16, partial(sending, _TEXTS), yardsticks.python, 3.0),
    Benchmark(
        "receive 64 KiB", 4, partial(receiving, frames.binaries(4, 64 * _KIB)), yardsticks.copying, 4.5
    ),
    Benchmark("send 64 KiB", 4, partial(sending, _BYTES), yardsticks.copying, 2.2),
    Benchmark("inflate 1 KiB", 16, _DEFLATE, yardsticks.zlib_alone, 0.45),
    Benchmark("deflate 1 KiB", 16, partial(sending, _JSON, deflate=True), yardsticks.zlib_alone, 1.15),
    Benchmark("ASGI, one in flight", 50, partial(echoing, apps.echo, 50, 1), yardsticks.sockets, 3.6),
    Benchmark("ASGI, 16 in flight", 160, partial(echoing, apps.echo, 10, 16), yardsticks.sockets, 0.85),
    Benchmark(
        "native, one in flight", 50, partial(echoing, apps.native_echo, 50, 1), yardsticks.sockets, 3.5
    ),
    Benchmark(
        "native, 16 in flight", 160, partial(echoing, apps.native_echo, 10, 16), yardsticks.sockets, 0.8
    ),
    Benchmark("ASGI, connect, echo, close", 10, partial(connecting, apps.echo, 10), yardsticks.sockets, 70),
]


async def measure(benchmark: Benchmark) -> tuple[float, float]:
    """Return the cost of an operation: as a ratio to the yardstick's, and in seconds."""
    with benchmark.yardstick() as yardstick:
        async with benchmark.batch() as batch:
            batches = math.ceil(_SECONDS / await _seconds(batch, 1))
            steps = math.ceil(_SECONDS / _seconds_of(yardstick, 1))
            own = other = math.inf
            for repeat in range(MOST_REPEATS):
                own = min(own, await _seconds(batch, batches) / benchmark.operations)
                other = min(other, _seconds_of(yardstick, steps))
                if repeat >= REPEATS and own <= benchmark.bound * other:
                    break
    return own / other, own


async def _seconds(batch: Batch, count: int) -> float:
    """Return the CPU time of a batch, the average of so many."""
    started = time.process_time()
    for _ in range(count):
        await batch()
    return (time.process_time() - started) / count


def _seconds_of(yardstick: Callable[[int], None], count: int) -> float:
    """Return the CPU time of a step of it, the average of so many."""
    started = time.process_time()
    yardstick(count)
    return (time.process_time() - started) / count


async def main() -> None:
    """Measure all; exit with 1 if one is beyond its bound."""
    failed = False
    print(f"{'':28} {'µs':>8} {'ratio':>8} {'bound':>8}  to")
    for benchmark in BENCHMARKS:
        ratio, seconds = await measure(benchmark)
        beyond = ratio > benchmark.bound
        failed = failed or beyond
        print(
            f"{benchmark.title:28} {seconds * 1e6:8.2f} {ratio:8.2f} {benchmark.bound:8.2f}  "
            f"{benchmark.yardstick.__name__}{': beyond the bound' if beyond else ''}"
        )
    sys.exit(failed)


if __name__ == "__main__":
    trio.run(main)
