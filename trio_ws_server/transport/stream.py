"""A transport over any `trio.abc.Stream`: TLS, memory streams, and plain sockets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.abc import HalfCloseableStream

from trio_ws_server.scheduling import Changes, serving_nursery
from trio_ws_server.transport.base import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.abc import Stream

    from trio_ws_server.config import Config

PIECE_SIZE = 16 * 1024
"""
What is given at a time to a stream that does not tell how far a ``send_all`` has come: one record of TLS.

The write timeout runs for each piece; on a socket it runs for each time that the network takes something.
"""

FORCED_CLOSE_TIMEOUT = 1.0
"""Seconds for a stream to close without waiting for anything, which takes none: a bound for strange streams."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@asynccontextmanager
async def open_stream_transport(stream: Stream, config: Config) -> AsyncGenerator[Transport, None]:
    """
    Run a transport over ``stream`` for the length of the ``async with``; the stream is closed at its end.

    Its `receiver` must be set before the first checkpoint.
    """
    transport = StreamTransport(stream, config)
    async with serving_nursery() as nursery:
        nursery.start_soon(transport.run)
        yield transport


class StreamTransport(Transport):
    """Two tasks, one reading and one writing: whoever calls the transport can be cancelled, these are not."""

    def __init__(self, stream: Stream, config: Config) -> None:
        self._stream = stream
        self._write_timeout = config.write_timeout
        self._high_water = config.write_high_water
        self._low_water = config.write_low_water
        self._chunks: list[bytes] = []
        self._written = 0
        self._sent = 0
        self._congested = False
        self._reading_paused = False
        self._closing = False
        self._eof_sent = False
        self._eof_received = False
        self._lost = False
        self._io_scope = trio.CancelScope()
        self._read_changes = Changes()
        self._write_changes = Changes()
        self._drain_changes = Changes()
        self._progress = Changes()

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def congested(self) -> bool:
        return self._congested

    def write(self, data: bytes) -> None:
        if self._lost:
            return
        self._chunks.append(data)
        self._written += len(data)
        if self._written - self._sent > self._high_water:
            self._congested = True
        self._write_changes.announce()

    async def drain(self) -> None:
        await self._drain_changes.until(lambda: not self._congested)

    async def flush(self, patience: float) -> bool:
        mark = self._written
        while self._sent < mark:
            with trio.move_on_after(patience) as waited:
                await self._more_sent_than(self._sent)
            if waited.cancelled_caught:
                return False
        return not self._lost

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._read_changes.announce()

    async def shutdown(self, linger: float) -> None:
        self._closing = True
        self.resume_reading()
        self._write_changes.announce()
        try:
            await self._drain_changes.until(lambda: self._eof_sent or self._lost)
            with trio.move_on_after(linger):
                await self._drain_changes.until(lambda: self._eof_received or self._lost)
        finally:
            self.abort()

    def abort(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._chunks.clear()
        self._sent = self._written
        self._congested = False
        self._io_scope.cancel()
        self._drain_changes.announce()
        self._progress.announce()
        self.receiver.connection_lost()

    async def run(self) -> None:
        """Read and write until the connection is lost, as it is when this is cancelled; close the stream."""
        try:
            with self._io_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_loop)
                    nursery.start_soon(self._write_loop)
                    await trio.sleep_forever()
        finally:
            try:
                self.abort()
            finally:
                # Shielded, so that a Cancelled does not take the place of the error that this may be ending with.
                with trio.move_on_after(FORCED_CLOSE_TIMEOUT, shield=True):
                    await trio.aclose_forcefully(self._stream)

    async def _read_loop(self) -> None:
        """Hand what arrives to the receiver, until the peer ends its side."""
        try:
            while await self._receive():
                await self._read_changes.until(lambda: not self._reading_paused)
        except _GONE:
            self.abort()
        if not self._lost:
            self._eof_received = True
            self._drain_changes.announce()
            self.receiver.eof_received()

    async def _receive(self) -> bool:
        """Hand on what arrives, and keep nothing of it; return whether it was not the end."""
        data = await self._stream.receive_some()
        if data and not self._closing and not self._lost:
            self.receiver.data_received(bytes(data))
        return bool(data)

    async def _write_loop(self) -> None:
        """Send what is written, until the transport is shut down and all is sent."""
        try:
            while True:
                await self._write_changes.until(lambda: bool(self._chunks) or self._closing)
                if not self._chunks:
                    break
                await self._send_buffered()
            await self._send_eof()
        except (*_GONE, trio.TooSlowError):
            self.abort()

    async def _send_buffered(self) -> None:
        """Send all that is buffered now, in one piece where it is small."""
        chunks, self._chunks = self._chunks, []
        view = memoryview(b"".join(chunks) if len(chunks) > 1 else chunks[0])
        while view:
            with trio.fail_after(self._write_timeout):
                sent = await self._send_some(view)
            if self._lost:
                return
            view = view[sent:]
            self._sent += sent
            self._progress.announce()
            if self._congested and self._written - self._sent <= self._low_water:
                self._congested = False
                self._drain_changes.announce()
                self.receiver.writable_again()

    async def _more_sent_than(self, sent: int) -> None:
        await self._progress.until(lambda: self._sent > sent)

    async def _send_some(self, data: memoryview) -> int:
        """Send a part of the data; return how many bytes."""
        if isinstance(self._stream, trio.SocketStream):
            return await self._stream.socket.send(data)
        piece = data[:PIECE_SIZE]
        await self._stream.send_all(piece)
        return len(piece)

    async def _send_eof(self) -> None:
        with trio.fail_after(self._write_timeout):
            if isinstance(self._stream, HalfCloseableStream):
                await self._stream.send_eof()
            else:
                await self._stream.aclose()
        self._eof_sent = True
        self._drain_changes.announce()
