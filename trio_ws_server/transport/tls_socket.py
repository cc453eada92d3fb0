"""
A transport straight on a socket that speaks TLS: the poller's, as plain ones are, with no task of its own.

To `SocketTransport`, a `TLSSocket` is a socket as any other. Three rules make it one. What the system can tell of
a socket holds here too: there is something to receive if, and only if, the socket below is readable. Sending
counts plaintext as taken when the network has taken its ciphertext, so that water marks and timeouts mean what
they mean without TLS. And memory is bounded: there is ciphertext of one piece at most, however much waits.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from trio_ws_server.transport.socket import Incomplete, SocketTransport
from trio_ws_server.transport.tls import PLAINTEXT_SIZE, RECORD_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

    from trio_ws_server.config import Config
    from trio_ws_server.transport.engine import Engine
    from trio_ws_server.transport.poller import Poller
    from trio_ws_server.transport.socket import Socket
    from trio_ws_server.transport.tls import TLS

READ_SIZE = 2 * RECORD_SIZE
"""Bytes of ciphertext that are taken at a time: tiny records take thirty times as long as full ones."""

PIECE_SIZE = 4 * PLAINTEXT_SIZE
"""Bytes of plaintext that are encrypted ahead of what the network takes."""


class TLSSocket:
    """A non-blocking socket that sends and receives plaintext, after a handshake that took no byte too many."""

    __slots__ = ("_ahead", "_ciphertext", "_failed", "_fruitless", "_socket", "_tls", "ended", "overhead")

    def __init__(self, sock: Socket, tls: TLS) -> None:
        self._socket = sock
        self._tls = tls
        self._ciphertext = memoryview(b"")
        self._ahead = 0
        self._failed = False
        self._fruitless = 0
        self.ended = False
        """Whether no TLS is spoken any more."""
        self.overhead = 0
        """Bytes that the network has taken of ciphertext beyond those that `send` has counted as taken."""

    def send(self, data: bytes | memoryview) -> int:
        """Send what data stands for; what the network has not taken of it may be encrypted already."""
        if self.ended:
            return self._socket.send(data)
        if self._failed:
            raise ConnectionAbortedError("sending has failed before")
        try:
            return self._send(memoryview(data))
        except BlockingIOError:
            raise
        except BaseException:
            # A record may be missing, or whoever called forget the data that ciphertext stands for.
            self._failed = True
            raise

    def sendmsg(self, parts: list[bytes | memoryview]) -> int:
        """Do as `send` does with all parts behind each other, of which it takes one piece at most."""
        pieces: list[memoryview] = []
        room = PIECE_SIZE
        for part in parts:
            pieces.append(memoryview(part)[:room])
            room -= len(pieces[-1])
        return self.send(b"".join(pieces))

    def recv_into(self, buffer: memoryview) -> int:
        """
        Receive into ``buffer``, which must have room for several records.

        The peer ends its side by ``close_notify``. Where the connection is just cut, or what comes is not what
        the peer has encrypted, it is lost.
        """
        if self.ended:
            return self._socket.recv_into(buffer)
        # Plaintext is no longer than its record, and no more than a part of one came earlier: so what is
        # decrypted never reaches what is not.
        behind = buffer[RECORD_SIZE : RECORD_SIZE + READ_SIZE]
        ciphertext = behind[: self._socket.recv_into(behind)]
        received, ended = 0, False
        try:
            for size in self._decrypted(ciphertext, buffer):
                received += size
                ended = not size
        except ssl.SSLError:
            ended = True
            if not received:
                raise
        finally:
            self._send_answer()
        if ended and received:
            # The end is for the next call, which the poller makes if the socket below is at its end as well.
            # What might still come there is nobody's (RFC 8446 section 6.1).
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
        self._fruitless = 0 if received else self._fruitless + len(ciphertext)
        if self._fruitless > READ_SIZE:
            raise ConnectionAbortedError("the peer sends records without data")
        if not (ended or received):
            raise Incomplete("no whole record has come yet")
        return received

    def end(self) -> bytes:
        """Speak no more TLS; return what is left to be sent, which ends with ``close_notify``."""
        self._tls.end()
        self.ended = True
        return bytes(self._ciphertext) + self._tls.output()

    def shutdown(self, how: int) -> None:
        """Do as a socket does."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Do as a socket does."""
        self._socket.close()

    # How.

    def _send(self, view: memoryview) -> int:
        taken = 0
        while taken < len(view):
            if not self._ciphertext:
                self._encrypt(view[taken : taken + PIECE_SIZE])
            try:
                taken += self._send_ciphertext()
            except BlockingIOError:
                if not taken:
                    raise
                break
        return taken

    def _encrypt(self, data: memoryview) -> None:
        # Record by record, since a MemoryBIO never gives back what it once had room for.
        records = []
        for start in range(0, len(data), PLAINTEXT_SIZE):
            self._tls.ssl_object.write(data[start : start + PLAINTEXT_SIZE])
            records.append(self._tls.output())
        self._ciphertext = memoryview(b"".join(records))
        self._ahead = len(data)

    def _send_ciphertext(self) -> int:
        """Send some of it; return how many bytes of plaintext that makes: the last only with the last."""
        sent = self._socket.send(self._ciphertext)
        self._ciphertext = self._ciphertext[sent:]
        taken = min(sent, max(self._ahead - 1, 0)) if self._ciphertext else self._ahead
        self._ahead -= taken
        self.overhead += sent - taken
        return taken

    def _decrypted(self, ciphertext: memoryview, buffer: memoryview) -> Iterator[int]:
        """Decrypt all whole records into the buffer; yield the size of each, and 0 for ``close_notify``."""
        filled = 0
        for start in range(0, len(ciphertext) or 1, PLAINTEXT_SIZE):
            self._tls.feed(ciphertext[start : start + PLAINTEXT_SIZE])
            more = 1
            try:
                while more:
                    # With a buffer it returns a number, of which typeshed does not know.
                    size: int = self._tls.ssl_object.read(PLAINTEXT_SIZE, buffer[filled:])  # type: ignore
                    yield size
                    if not size:
                        return
                    filled += size
                    more = self._tls.incoming.pending
            except ssl.SSLWantReadError:
                pass
            if self._tls.outgoing.pending > RECORD_SIZE:
                raise ConnectionAbortedError(
                    "the peer asks for more answers of TLS than it is given room for"
                )

    def _send_answer(self) -> None:
        """Send what TLS itself had to say to what came; what the network does not take now goes before data."""
        if self._tls.outgoing.pending and not self._ciphertext:
            self._ciphertext = memoryview(self._tls.output())
            # What fails will fail again for who sends data.
            with suppress(OSError):
                self._send_ciphertext()


class TLSTransport(SocketTransport):
    """A transport on a connected socket of Trio's and the TLS that was agreed on there."""

    __slots__ = ("_tls", "_tls_socket")

    def __init__(
        self, sock: trio.socket.SocketType, tls: TLS, config: Config, engine: Engine, poller: Poller
    ) -> None:
        super().__init__(sock, config, engine, poller)
        self._tls = tls

    def _begin(self) -> None:
        # Not earlier: nobody but `abort` closes the socket if this fails.
        self._socket = self._tls_socket = TLSSocket(self._socket, self._tls)
        super()._begin()

    def see_taken(self) -> None:
        if not self.lost:
            # What the kernel keeps is ciphertext.
            self._kept += self._tls_socket.overhead
            self._tls_socket.overhead = 0
        super().see_taken()

    def _end_if_all_is_sent(self) -> None:
        if self._ending and not self._unsent and not self._tls_socket.ended:
            last = self._tls_socket.end()
            self._chunks.append(last)
            self._unsent = len(last)
            self.push()
        super()._end_if_all_is_sent()
