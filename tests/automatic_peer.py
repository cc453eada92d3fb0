"""A peer that takes part by itself and keeps what it was sent; the websockets library speaks for it."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trustme
from trio.abc import HalfCloseableStream, Stream
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from tests.networks import left_closed, stream_pair
from trio_ws_server.close_codes import Close
from trio_ws_server.transport import TLSStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("server.test", "127.0.0.1").configure_cert(SERVER_CONTEXT)
# In lockstep, nobody reads the session tickets that come behind the handshake: it would not end.
SERVER_CONTEXT.num_tickets = 0
CLIENT_CONTEXT = ssl.create_default_context()
CA.configure_trust(CLIENT_CONTEXT)


@asynccontextmanager
async def connected(*, client: bool, tls: bool, lockstep: bool) -> AsyncGenerator[tuple[Stream, Stream]]:
    """Yield our end of a connection, a client's or a server's, and the peer's; at the end, ours is closed."""
    ours, theirs = stream_pair(lockstep=lockstep)
    async with left_closed(ours):
        if tls:
            name = "server.test"
            our_end = TLSStream(
                ours, CLIENT_CONTEXT if client else SERVER_CONTEXT, server_hostname=name if client else None
            )
            their_end = trio.SSLStream(
                theirs,
                SERVER_CONTEXT if client else CLIENT_CONTEXT,
                server_hostname=None if client else name,
                server_side=client,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(our_end.do_handshake)
                nursery.start_soon(their_end.do_handshake)
            yield our_end, their_end
        else:
            yield ours, theirs


class AutomaticPeer:
    """
    The other end of a WebSocket connection whose opening handshake is done.

    It sends its messages, answers each ``probe`` with an ``answer``, every ping and the close.
    """

    def __init__(
        self, stream: Any, *, client: bool, messages: Sequence[str] = (), deflate: bool = False
    ) -> None:
        self.received: list[bytes] = []
        """The messages that arrived, whole."""
        self.pongs: list[bytes] = []
        self._stream = stream
        self._to_send = messages
        self._protocol = Protocol(CLIENT if client else SERVER, max_size=None)
        if deflate:
            self._protocol.extensions = [PerMessageDeflate(False, False, 15, 15)]
        self._pieces: list[bytes] = []
        self._ended = False
        self._arrival = trio.Event()

    @property
    def close(self) -> Close | None:
        """What the close frame said that arrived, None where none did."""
        rcvd = self._protocol.close_rcvd
        return None if rcvd is None else Close(rcvd.code, rcvd.reason)

    async def run(self) -> None:
        """Take part until our end is over. All that it sends must be right."""
        for message in self._to_send:
            self._protocol.send_text(message.encode())
        await self.flush()
        while not self._ended and (data := await self._stream.receive_some()):
            await self.take(bytes(data))
        self._protocol.receive_eof()
        assert self._protocol.parser_exc is None or isinstance(self._protocol.parser_exc, EOFError)
        await self.flush()
        await self._stream.aclose()

    async def take(self, data: bytes) -> None:
        """Take what our end sent, and answer it."""
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is Opcode.PONG:
                self.pongs.append(bytes(frame.data))
            if frame.opcode not in DATA_OPCODES:
                continue
            self._pieces.append(bytes(frame.data))
            if frame.fin:
                self.received.append(b"".join(self._pieces))
                self._pieces.clear()
                self._arrival.set()
                if self.received[-1] == b"probe" and self._protocol.state is State.OPEN:
                    self._protocol.send_text(b"answer")
        await self.flush()

    async def echo(self, message: str) -> None:
        """Send the message, and wait for it to come back."""
        self._protocol.send_text(message.encode())
        await self.flush()
        while message.encode() not in self.received:
            self._arrival = trio.Event()
            await self._arrival.wait()

    async def ping(self, payload: bytes) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(payload)
            await self.flush()

    async def send_close(self) -> None:
        self._protocol.send_close(1000)
        await self.flush()

    async def flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._stream.send_all(data)
            elif isinstance(self._stream, HalfCloseableStream):
                await self._stream.send_eof()
            else:
                await self._stream.aclose()
                self._ended = True
