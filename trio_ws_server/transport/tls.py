"""
TLS without a network (`TLS`), and over any stream (`TLSStream`), with an end of its own side.

`trio.SSLStream` can only be closed as a whole, and closing takes the socket with it, unread data and all: the
reset that follows can destroy our last bytes (see `Transport.shutdown`). Here the socket is kept from it: ending
our side sends ``close_notify`` and then ends the socket's sending side, and what still arrives can be dropped.
A handshake that fails ends with an alert, which tells the peer why; and once it is done, the state of TLS can
leave the stream, for a socket that the poller looks after.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.abc import HalfCloseableStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.abc import Stream

T = TypeVar("T")

_HEADER_SIZE = 5
"""Bytes before each record (RFC 8446 section 5.1), of which the last two tell how many follow."""

PLAINTEXT_SIZE = 2**14
"""Bytes of plaintext in a record, at most (RFC 8446 section 5.1)."""

RECORD_SIZE = _HEADER_SIZE + PLAINTEXT_SIZE + 2048
"""Bytes of a whole record, at most: what encryption may add is more in TLS 1.2 (RFC 5246 section 6.2.3)."""


class TLS:
    """The TLS of one connection: an `ssl.SSLObject`, and the ciphertext on its way into and out of it."""

    __slots__ = ("_tickets", "incoming", "outgoing", "ssl_object")

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )
        self._tickets = b""

    def shake_hands(self) -> bool:
        """
        Go on with the handshake; return True when it is done.

        Raises ``ssl.SSLWantReadError`` if it needs more of the peer's, another ``ssl.SSLError`` if it fails.
        """
        self.ssl_object.do_handshake()
        # TLS 1.3's session tickets (RFC 8446 section 4.6.1) wait for the first data. A client that has nothing to
        # read but them, and closes without having done so, would reset the connection, and we lose what it sent.
        if self.ssl_object.server_side and self.ssl_object.version() == "TLSv1.3":
            self._tickets = self.outgoing.read()
        return True

    def output(self) -> bytes:
        """Return the ciphertext that the steps up to here have made, to be sent in order."""
        ciphertext = self.outgoing.read()
        if ciphertext and self._tickets:
            ciphertext, self._tickets = self._tickets + ciphertext, b""
        return ciphertext

    def feed(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Take in what the peer has sent, or, where that is nothing, that it was the end."""
        if ciphertext:
            self.incoming.write(ciphertext)
        else:
            self.incoming.write_eof()

    def end(self) -> None:
        """Have ``close_notify`` go out (RFC 8446 section 6.1): the last that does."""
        # The peer's own has not come yet, or there is no TLS left to be ended.
        with suppress(ssl.SSLError):
            self.ssl_object.unwrap()


class TLSStream(HalfCloseableStream):
    """TLS over a stream, for a server or, with a ``server_hostname``, for a client."""

    def __init__(
        self, stream: Stream, context: ssl.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        self.stream = stream
        """The one below."""
        self.tls = TLS(context, server_hostname)
        self._ended = False
        self._sending = trio.StrictFIFOLock()

    async def do_handshake(self) -> None:
        """
        Wait for the TLS handshake; raises `trio.BrokenResourceError` if it fails, of which the peer is told.

        Takes nothing from the stream below but the handshake's own records: what the peer sends next is still
        there when whoever takes over the `tls` begins to look for it. Cancelling it leaves nothing of use.
        """
        header, missing = b"", 0
        while not await self._has_done(self.tls.shake_hands):
            data = await self.stream.receive_some(missing or _HEADER_SIZE - len(header))
            self.tls.feed(data)
            if missing:
                missing -= len(data)
            else:
                header += data
                if len(header) == _HEADER_SIZE:
                    header, missing = b"", int.from_bytes(header[3:], "big")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        for start in range(0, len(view), PLAINTEXT_SIZE):
            try:
                self.tls.ssl_object.write(view[start : start + PLAINTEXT_SIZE])
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError("TLS is in no state to send") from exc
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        self._ended = True
        self.tls.end()
        await self._flush()
        if isinstance(self.stream, HalfCloseableStream):
            await self.stream.send_eof()
        else:
            await self.stream.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """
        Return what the peer sent.

        After `send_eof` there is no TLS left to decrypt with: what comes then is only good for telling whether
        the peer has ended its side too.
        """
        await trio.lowlevel.checkpoint()
        ciphertext = None
        while not self._ended:
            if ciphertext is not None:
                self.tls.feed(ciphertext)
            data = await self._has_done(lambda: self.tls.ssl_object.read(max_bytes or PLAINTEXT_SIZE))
            if data is not None:
                return data
            ciphertext = await self.stream.receive_some(PLAINTEXT_SIZE)
        return ciphertext or await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def _has_done(self, step: Callable[[], T]) -> T | None:
        """Return what a step returns, None if it needs more from the peer; send what comes of it."""
        try:
            result = step()
        except ssl.SSLWantReadError:
            result = None
        except ssl.SSLError as exc:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._flush()
            raise trio.BrokenResourceError("TLS failed") from exc
        await self._flush()
        return result

    async def _flush(self) -> None:
        """
        Send the ciphertext of the step before, after that of the steps before it.

        Who receives sends TLS's answers alone, and so does not wait for the peer to take anybody's data.
        """
        if ciphertext := self.tls.output():
            async with self._sending:
                await self.stream.send_all(ciphertext)
