"""TLS of both ends of a connection, by `ssl` alone: contexts that trust each other, handshakes, and a client."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio
import trustme
from trio.abc import HalfCloseableStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.abc import Stream

T = TypeVar("T")

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("server.test", "127.0.0.1").configure_cert(SERVER_CONTEXT)
# On in Debian's Python, where it makes a connection that is cut look like one that is ended.
SERVER_CONTEXT.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return a context that trusts the server's, for this version of TLS at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    CA.configure_trust(context)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.maximum_version = version
    return context


class End(NamedTuple):
    """What one end knows of a connection, and the ciphertext on its way into and out of it."""

    ssl_object: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @classmethod
    def of_client(cls, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> End:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ssl_object = context.wrap_bio(incoming, outgoing, server_hostname="server.test", session=session)
        return cls(ssl_object, incoming, outgoing)

    @classmethod
    def of_server(cls, context: ssl.SSLContext) -> End:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)


def shake_hands(client: End, server: End) -> None:
    """Make the handshake between two ends; raises ``ssl.SSLError`` if it fails."""
    for _ in range(3):
        for end, other in (client, server), (server, client):
            with suppress(ssl.SSLWantReadError):
                end.ssl_object.do_handshake()
            other.incoming.write(end.outgoing.read())


class TLSPeer(HalfCloseableStream):
    """
    The client's end of TLS over a stream.

    It takes from the stream record by record, none before somebody wants to receive, and can end its side alone,
    neither of which `trio.SSLStream` does.
    """

    def __init__(self, stream: Stream, end: End) -> None:
        self.stream = stream
        self.end = end

    async def do_handshake(self) -> None:
        await self.until(self.end.ssl_object.do_handshake)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.end.ssl_object.write(data)
        await self.flush()

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return await self.until(lambda: self._read(max_bytes or 64 * 1024))

    async def send_eof(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.end.ssl_object.unwrap()
        await self.flush()
        if isinstance(self.stream, HalfCloseableStream):
            await self.stream.send_eof()

    async def aclose(self) -> None:
        """Cut the connection: only `send_eof` announces the end."""
        await self.stream.aclose()

    async def until(self, step: Callable[[], T]) -> T:
        """Repeat a step, with what the server sends, until it needs no more of that."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError(f"TLS failed: {exc}") from exc
            finally:
                await self.flush()
            await self._take_a_record()

    async def flush(self) -> None:
        """Send the ciphertext there is."""
        if self.end.outgoing.pending:
            await self.stream.send_all(self.end.outgoing.read())

    def _read(self, size: int) -> bytes:
        try:
            return self.end.ssl_object.read(size)
        except ssl.SSLZeroReturnError:
            # What OpenSSL says of the other's end when this one's is there already.
            return b""

    async def _take_a_record(self) -> None:
        header = await self._take(5)
        await self._take(int.from_bytes(header[3:], "big"))

    async def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            data = await self.stream.receive_some(size - len(taken))
            if not data:
                self.end.incoming.write_eof()
                break
            self.end.incoming.write(data)
            taken += data
        return taken
