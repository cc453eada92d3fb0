"""
TLS with an end of its own side.

`trio.SSLStream` can only be closed as a whole, and closing takes the socket with it, unread data and all: the
reset that follows can destroy our last bytes (see `Transport.shutdown`). Here the socket is kept from it: ending
our side sends ``close_notify`` and then ends the socket's sending side, and what still arrives can be dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.abc import HalfCloseableStream, Stream

if TYPE_CHECKING:
    import ssl


class _KeptOpen(Stream):
    """A stream whose ``aclose`` ends only its sending side."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        if isinstance(self._stream, HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await self._stream.aclose()


class TLSStream(HalfCloseableStream):
    """TLS over a stream, for a server or, with a ``server_hostname``, for a client."""

    def __init__(
        self, stream: Stream, context: ssl.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        self._stream = stream
        self._ended = False
        self.ssl_stream = trio.SSLStream(
            _KeptOpen(stream), context, server_hostname=server_hostname, server_side=server_hostname is None
        )

    async def do_handshake(self) -> None:
        """Wait for the TLS handshake; raises `trio.BrokenResourceError` if it fails."""
        await self.ssl_stream.do_handshake()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.ssl_stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.ssl_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        self._ended = True
        await self.ssl_stream.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """
        Return what the peer sent.

        After `send_eof` there is no TLS left to decrypt with: what comes then is only good for telling whether
        the peer has ended its side too.
        """
        if not self._ended:
            try:
                return await self.ssl_stream.receive_some(max_bytes)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                if not self._ended:
                    raise
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
