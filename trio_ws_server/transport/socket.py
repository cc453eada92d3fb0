"""A transport straight on a socket, which the poller tells when it is ready: no task of its own."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from trio_ws_server.transport import kernel
from trio_ws_server.transport.base import Transport
from trio_ws_server.transport.poller import READABLE, WRITABLE

if TYPE_CHECKING:
    from trio_ws_server.config import Config
    from trio_ws_server.transport.engine import Engine
    from trio_ws_server.transport.poller import Poller

BUFFERS_PER_TURN = 4
"""
How often a socket may fill the poller's buffer before others have their turn.

For a large message, each further turn would take a third as long as it takes to read so much.
"""

HELD_AT_MOST = 64 * 1024
"""Bytes that are held back to be written together."""

COPIED_AT_ONCE = 16 * 1024
"""Bytes received that are handed on as ``bytes``: to look into a ``memoryview`` takes longer, but saves a copy."""

SENT_BY_ITSELF = 16 * 1024
"""Bytes that are not copied to be sent together with what is before them."""

_NOT_NOW = (BlockingIOError, InterruptedError)


class Incomplete(BlockingIOError):
    """What has come is a sign of life, and no more than that."""


class Socket(Protocol):
    """What a transport needs of its socket, which never blocks."""

    def send(self, data: bytes | memoryview, /) -> int:
        """
        Send from the beginning of ``data``; return how many bytes of it the network has taken.

        Until these are all, the next call's data begins with the rest. Raises ``BlockingIOError`` if the network
        takes nothing now, another ``OSError`` if the connection is lost.
        """

    def sendmsg(self, parts: list[bytes | memoryview], /) -> int:
        """Do as `send` does with all parts behind each other."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """
        Receive into ``buffer``; return how many bytes, 0 if the peer has ended its side.

        Raises ``BlockingIOError`` if nothing is there now, `Incomplete` if it makes nothing without what is to
        follow, another ``OSError`` if the connection is lost.
        """

    def shutdown(self, how: int, /) -> None:
        """End one side, or both."""

    def close(self) -> None:
        """Give back the descriptor."""


class SocketTransport(Transport):
    """A transport on a connected stream socket, which Trio has no part in any more."""

    __slots__ = (
        "_blocked_at",
        "_chunks",
        "_events",
        "_fd",
        "_held_at_most",
        "_keeps_more",
        "_poller",
        "_reading_paused",
        "_sending",
        "_socket",
        "_timing_writes",
    )

    def __init__(self, sock: trio.socket.SocketType, config: Config, engine: Engine, poller: Poller) -> None:
        super().__init__(config, engine)
        self._keeps_more = kernel.keep_more(sock)
        connected = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        connected.setblocking(False)
        self._socket: Socket = connected
        self._fd = connected.fileno()
        self._poller = poller
        self._events = 0
        self._chunks: list[bytes] = []
        self._sending: list[bytes | memoryview] = []
        self._blocked_at: float | None = None
        """When the socket had no more room, for as long as it is so."""
        self._timing_writes = False
        self._reading_paused = False
        self._held_at_most = min(HELD_AT_MOST, config.write_high_water)

    def write(self, data: bytes) -> None:
        if self._ending or self.lost:
            return
        if self._unsent:
            self._chunks.append(data)
            self._unsent += len(data)
            if self._blocked_at is not None:
                self._look_at_high_water()
            else:
                self.push()
            return
        try:
            sent = self._socket.send(data)
        except OSError:
            # That of a connection that is gone will be met by the poller: whoever writes is not called back.
            sent = 0
        self._kept += sent
        if sent < len(data):
            self._sending = [memoryview(data)[sent:]]
            self._unsent = len(data) - sent
            self._block()

    def write_soon(self, data: bytes) -> None:
        if self._ending or self.lost:
            return
        if not self._unsent:
            self._poller.push_later(self)
            # Not when it is pushed: nothing can be put off there.
            self._time_writes(trio.current_time())
        self._chunks.append(data)
        self._unsent += len(data)
        if self._blocked_at is not None:
            self._look_at_high_water()
        elif self._unsent > self._held_at_most:
            self.push()

    def push(self) -> None:
        if self._unsent and self._blocked_at is None:
            # What fails will fail again for the poller, as in `write`.
            with suppress(OSError):
                self._send()
            if self._unsent:
                self._block()

    def look(self) -> None:
        if not self.lost:
            self._poller.looked_at = trio.current_time()
            self._guarded(lambda: self.ready(READABLE | WRITABLE))
            self.see_taken()

    def see_taken(self) -> None:
        if self.lost:
            return
        if not self._keeps_more:
            self.taken += self._kept
            self._kept = 0
            return
        kept = kernel.kept(self._fd)
        if kept < self._kept:
            self.taken += self._kept - kept
            self.taken_at = trio.current_time()
        self._kept = kept

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._watch()

    def end(self) -> None:
        if self._ending or self.lost:
            return
        self._ending = True
        self.resume_reading()
        self.push()
        self._end_if_all_is_sent()

    # What the poller calls.

    def ready(self, events: int) -> None:
        """Receive, and send what is unsent, as far as the events allow."""
        # What a peer sent before it went is there to be read; sending fails then, and ends all.
        if events & ~WRITABLE and not self._peer_ended:
            self._receive()
        if self._blocked_at is not None and events & ~READABLE and not self.lost:
            self._send_buffered()

    # How.

    def _begin(self) -> None:
        self._poller.add(self._fd, self)
        self._watch()

    def _close(self) -> None:
        self._chunks.clear()
        self._sending.clear()
        # Once: then it may be another socket's number.
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                self._poller.forget(fd, before=self._events)
        finally:
            self._socket.close()

    def _receive(self) -> None:
        """Receive what is there, as much as a turn has room for."""
        buffer = self._poller.buffer
        for _ in range(BUFFERS_PER_TURN):
            if self._reading_paused:
                self._watch()
                return
            try:
                size = self._socket.recv_into(buffer)
            except Incomplete:
                self.received_at = self._poller.looked_at
                return
            except _NOT_NOW:
                return
            except OSError:
                self.abort()
                return
            if not size:
                self._peers_side_has_ended()
                self._watch()
                return
            if self._ending:
                return
            self.received_at = self._poller.looked_at
            data = buffer[:size]
            self.receiver.data_received(data.tobytes() if size <= COPIED_AT_ONCE else data)
            if size < len(buffer) or self.lost:
                return

    def _send_buffered(self) -> None:
        """Send what the socket has room for now, and tell who waits for that."""
        before = self._unsent
        try:
            self._send()
        except OSError:
            self.abort()
            return
        if self._unsent < before:
            # Where there was no room, the peer has made it. What a socket takes that had room tells nothing of it.
            self.taken_at = trio.current_time()
        if self._unsent:
            self.see_taken()
        else:
            self._blocked_at = None
        self._watch()
        self._tell_of_room()
        self._end_if_all_is_sent()

    def _end_if_all_is_sent(self) -> None:
        if not self._ending or self._unsent or self.lost:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer has dropped the connection, and the poller has yet to see it.
            self.abort()
        else:
            self._our_side_has_ended()

    def _send(self) -> None:
        """Send until nothing is left or the socket has no room; raises ``OSError`` for one that is lost."""
        while self._unsent:
            if not self._sending:
                self._sending = _parts(self._chunks)
                self._chunks.clear()
            sending = self._sending
            try:
                sent = self._socket.send(sending[0]) if len(sending) == 1 else self._socket.sendmsg(sending)
            except _NOT_NOW:
                return
            self._unsent -= sent
            self._kept += sent
            while sending and sent >= len(sending[0]):
                sent -= len(sending.pop(0))
            if sent:
                sending[0] = memoryview(sending[0])[sent:]

    def _block(self) -> None:
        """Have the poller send the rest."""
        self._blocked_at = trio.current_time()
        self.see_taken()
        self._look_at_high_water()
        self._time_writes(self._blocked_at)
        self._watch()

    def _time_writes(self, since: float) -> None:
        """See to it that the progress is looked at ``write_timeout`` seconds after that time, and before."""
        if not self._timing_writes:
            self._timing_writes = True
            timeout = self._config.write_timeout
            self.call_by(since + timeout, timeout, self._check_progress)

    def _check_progress(self) -> None:
        """Drop a peer that has taken nothing for ``write_timeout`` seconds."""
        self._timing_writes = False
        if self._unsent:
            self.look()
        if self._unsent:
            now = trio.current_time()
            # What is held may yet block when it is pushed.
            since = now if self._blocked_at is None else max(self.taken_at, self._blocked_at)
            if since + self._config.write_timeout <= now:
                self.abort()
            else:
                self._time_writes(since)

    def _watch(self) -> None:
        """Have the poller look for what there is to do."""
        if self.lost:
            return
        reading = not self._reading_paused and not self._peer_ended
        events = READABLE * reading | WRITABLE * (self._blocked_at is not None)
        if events != self._events:
            self._poller.watch(self._fd, events, before=self._events)
            self._events = events


def _parts(chunks: list[bytes]) -> list[bytes | memoryview]:
    """Join what is to be sent, but for a last chunk that is large, as the payload of a large message is."""
    if len(chunks) == 1:
        return [chunks[0]]
    if len(chunks[-1]) < SENT_BY_ITSELF:
        return [b"".join(chunks)]
    return [b"".join(chunks[:-1]), chunks[-1]]
