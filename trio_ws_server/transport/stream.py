"""A transport over any `trio.abc.Stream`: memory streams, and sockets where there is no poller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.abc import HalfCloseableStream

from trio_ws_server.scheduling import Changes
from trio_ws_server.transport.base import FORCED_CLOSE_TIMEOUT, Transport

if TYPE_CHECKING:
    from trio.abc import Stream

    from trio_ws_server.config import Config
    from trio_ws_server.transport.engine import Engine

PIECE_SIZE = 16 * 1024
"""
What is given at a time to a stream that does not tell how far a ``send_all`` has come: one record of TLS.

The write timeout runs for each piece; on a socket it runs for each time that the network takes something.
"""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class StreamTransport(Transport):
    """Two tasks, one reading and one writing: whoever calls the transport can be cancelled, these are not."""

    __slots__ = ("_chunks", "_read_changes", "_reading_paused", "_stream", "_write_changes")

    def __init__(self, stream: Stream, config: Config, engine: Engine) -> None:
        super().__init__(config, engine)
        self._stream = stream
        self._chunks: list[bytes] = []
        self._reading_paused = False
        self._read_changes = Changes()
        self._write_changes = Changes()

    def write(self, data: bytes) -> None:
        if self._ending or self.lost:
            return
        self._chunks.append(data)
        self._unsent += len(data)
        self._look_at_high_water()
        self._write_changes.announce()

    def write_soon(self, data: bytes) -> None:
        # The writing task has its turn after all that can run now.
        self.write(data)

    def push(self) -> None:
        pass

    def look(self) -> None:
        # Done by the reading task, which has had its turn by the time that this is called.
        pass

    def see_taken(self) -> None:
        # What the stream below has taken is counted as it does.
        pass

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._read_changes.announce()

    def end(self) -> None:
        self._ending = True
        self.resume_reading()
        self._write_changes.announce()

    def _begin(self) -> None:
        self.start_soon(self._run_loops)

    def _close(self) -> None:
        self._chunks.clear()

    async def _run_loops(self) -> None:
        """Read and write until the connection is lost, as it is when this is cancelled; close the stream."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_loop)
                await self._read_loop()
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
        if not self.lost:
            self._peers_side_has_ended()

    async def _receive(self) -> bool:
        """Hand on what arrives, and keep nothing of it; return whether it was not the end."""
        data = await self._stream.receive_some()
        if data and not self._ending and not self.lost:
            self.received_at = trio.current_time()
            self.receiver.data_received(bytes(data))
        return bool(data)

    async def _write_loop(self) -> None:
        """Send what is written, until the transport is shut down and all is sent."""
        try:
            while True:
                await self._write_changes.until(lambda: bool(self._chunks) or self._ending)
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
            with trio.fail_after(self._config.write_timeout):
                sent = await self._send_some(view)
            if self.lost:
                return
            view = view[sent:]
            self.taken += sent
            self.taken_at = trio.current_time()
            self._unsent -= sent
            self._tell_of_room()

    async def _send_some(self, data: memoryview) -> int:
        """Send a part of the data; return how many bytes."""
        if isinstance(self._stream, trio.SocketStream):
            return await self._stream.socket.send(data)
        piece = data[:PIECE_SIZE]
        await self._stream.send_all(piece)
        return len(piece)

    async def _send_eof(self) -> None:
        with trio.fail_after(self._config.write_timeout):
            if isinstance(self._stream, HalfCloseableStream):
                await self._stream.send_eof()
            else:
                await self._stream.aclose()
        self._our_side_has_ended()
