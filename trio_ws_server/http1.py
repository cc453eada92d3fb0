"""The Trio side of an HTTP/1.1 connection: one exchange after the other, on one transport."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from trio_ws_server.body_pace import BodyPace
from trio_ws_server.errors import ClientDisconnected
from trio_ws_server.protocol.handshake import is_upgrade
from trio_ws_server.protocol.http1 import BadRequest, Exchange
from trio_ws_server.scheduling import Changes, give_way, pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trio_ws_server.config import Config
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.transport import Receiver, Transport

UNREAD_LIMIT = 64 * 1024
"""Bytes of a request's body, or of requests sent ahead, at which reading pauses; a whole head always fits."""

DRAINED_BODY = 64 * 1024
"""How much of a request's body, unread by the application, is read to keep the connection for the next one."""


class HttpConnection:
    """
    HTTP/1.1 with one client: `next_request`, then read its body and respond, and again.

    Once a request asks for an upgrade that is accepted, `hand_over` ends it.
    """

    def __init__(self, transport: Transport, config: Config) -> None:
        """Become the transport's receiver."""
        self.transport = transport
        self.status: int | None = None
        """The status of the response to the current request, None while there is none."""
        self.body_sent = 0
        """Bytes of the body sent in the response to the current request."""
        self.body_error: BadRequest | None = None
        """What is wrong with the current request's body, as far as it has been read: its framing, or its pace."""
        self._config = config
        self._exchange = Exchange(config)
        self._body_pace = BodyPace(config.body_timeout)
        self._first = True
        self._draining = False
        self._eof = False
        self._reading_paused = False
        self._overrun = False
        """Whether what the client sends ahead is dropped, as some of it was already."""
        self._changes = Changes()
        transport.receiver = self

    # The request.

    async def next_request(self) -> RequestHead | None:
        """
        Wait for the next request's head and return it; None where the connection is to be closed instead.

        That is so when the client has ended or has idled for too long. Raises `BadRequest` for what is no
        request, or one that does not come to its end in time.
        """
        if not self._first and not await self._next_exchange():
            return None
        request = await self._request_head()
        self._first = False
        return request

    async def receive_body(self) -> bytes:
        """
        Return the next piece of the request's body, ``b""`` at its end; wait until there is one.

        Raises `ClientDisconnected` if the client goes before the end of the body, or need not send it any more
        because the response is complete. So it does if the body is broken or comes too slowly: see `body_error`.
        """
        exchange = self._exchange
        await give_way()
        self._check_current(exchange)
        if self._body_held_back:
            self.transport.write(exchange.continue_())
        return await self._next_body(lambda: self._eof or exchange.response_complete)

    async def disconnected_or(self, condition: Callable[[], bool]) -> None:
        """
        Wait until `client_ended` or the condition, looked at whenever this connection changes, is true.

        The end is seen by reading up to it: if reading has paused at `UNREAD_LIMIT` bytes sent ahead of it, they
        are dropped, and no request is taken after this one. Of a body, nothing is dropped: an end behind so much
        of it is seen once `receive_body` has taken that.
        """

        def over() -> bool:
            return self.client_ended or condition()

        await give_way()
        await self._changes.until(lambda: over() or self._blocked_by_leftover)
        if not over():
            self._drop_leftover()
            await self._changes.until(over)

    @property
    def client_ended(self) -> bool:
        """
        Whether nothing more can come from the client: it ended its side, is gone, or sent a broken body.

        So it is as well where frames that it sent ahead of the answer to its WebSocket handshake were dropped.
        """
        return self._eof or self.body_error is not None

    @property
    def exchange(self) -> Exchange:
        """The current request and its response. What belongs to an earlier one must not touch this one."""
        return self._exchange

    # The response.

    @property
    def response_started(self) -> bool:
        """Whether a response to the current request has begun."""
        return self._exchange.response_started

    @property
    def response_complete(self) -> bool:
        """Whether the response to the current request is complete."""
        return self._exchange.response_complete

    def start_response(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, close: bool = False
    ) -> None:
        """
        Send the response's head, with the header fields that the server adds where they are missing.

        With ``close``, the response says that it is the last on the connection.
        Raises ``ValueError`` for what cannot be sent, `ClientDisconnected` if the client is gone.
        """
        self._check_connected()
        # RFC 9110 section 10.1.1: a client that is not told to send its body cannot go on to another request.
        self._exchange.must_close |= close or self._draining or self._body_held_back
        # To leave together with the body's first piece.
        self.transport.write_soon(self._exchange.respond(status, self.with_default_headers(headers)))
        self.status = status

    async def send_body(self, data: bytes, *, more: bool) -> None:
        """
        Send a piece of the response's body; without ``more`` to come, the last one.

        Waits, before and after, while more than ``write_high_water`` bytes wait to be taken by the client. Raises
        ``ValueError`` where the head allows no such body, `ClientDisconnected` if the client is gone. Cancelling
        it leaves either nothing or the whole piece to be sent.
        """
        exchange = self._exchange
        await pace()
        # Before as well as after: one piece each of many who gave up on waiting would be too much.
        await self.transport.drain()
        self._check_connected()
        self._check_current(exchange)
        self._write_body(data, more=more)
        await self.transport.drain()
        self._check_connected()

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, close: bool = False
    ) -> None:
        """
        Send a whole response of plain text; with ``close``, the last on the connection.

        Waits as `send_body` does, but only after it. Cancelling it then leaves the whole response to be sent.
        Raises ``ValueError`` for a status or header fields that cannot be sent; nothing has been sent then. Does
        nothing if the client is gone.
        """
        fields = [
            *headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        try:
            self.start_response(status, fields, close=close)
        except ClientDisconnected:
            return
        self._write_body(body, more=False)
        await self.transport.drain()

    def with_default_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Add the fields that the configuration asks for; a field that is there already is left as it is."""
        fields = list(headers)
        present = {name.lower() for name, _ in fields}
        fields.extend(field for field in self._config.response_headers if field[0].lower() not in present)
        present.update(name.lower() for name, _ in self._config.response_headers)
        if self._config.date_header and b"date" not in present:
            fields.append((b"date", _date(int(time.time()))))
        if self._config.server_header and b"server" not in present:
            fields.append((b"server", b"trio-ws-server"))
        return fields

    # The connection.

    def begin_drain(self) -> None:
        """Take no further request: end an idle connection, close a busy one after its response."""
        self._draining = True
        self._changes.announce()

    async def shutdown(self) -> None:
        """
        Send what is buffered, and close the connection.

        A client that is still sending is heard out for at most ``keep_alive_timeout`` seconds, so that it gets to
        read the response; one that is not, and keeps its side open, is not waited for.
        """
        unheard = not self._exchange.body_complete or bool(self._exchange.leftover) or self._overrun
        sending = self._exchange.response_started and unheard
        await self.transport.shutdown(linger=self._config.keep_alive_timeout if sending else 0)

    def hand_over(self, receiver: Receiver) -> None:
        """Give what the client sent behind its request to the protocol that has the transport from now on."""
        if self._reading_paused:
            self.transport.resume_reading()
        if leftover := self._exchange.take_leftover():
            receiver.data_received(leftover)
        if self.transport.lost:
            receiver.connection_lost()
        elif self._eof:
            receiver.eof_received()
        self._changes.announce()
        # Nobody asks for them any more, and what h11 holds would stay as long as the connection.
        del self._exchange, self._body_pace

    def data_received(self, data: bytes | memoryview) -> None:
        """Take bytes from the client."""
        if self._overrun:
            return
        self._exchange.receive_data(bytes(data))
        if self._unread_full and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        self._changes.announce()

    def eof_received(self) -> None:
        """Take note of the client's end."""
        self._eof = True
        self._changes.announce()

    def writable_again(self) -> None:
        """Do nothing: who sends waits in `Transport.drain`."""

    def connection_lost(self) -> None:
        """Take note that the transport is gone."""
        self.eof_received()

    # How.

    def _write_body(self, data: bytes, *, more: bool) -> None:
        wire = self._exchange.send_body(data) if data else b""
        size = len(data) if wire else 0
        if not more:
            wire += self._exchange.end_body()
        if wire:
            self.transport.write(wire)
            self.body_sent += size
        if not more:
            self._changes.announce()

    def _check_current(self, exchange: Exchange) -> None:
        """After a wait, see that the connection has not gone on to another request meanwhile."""
        if exchange is not self._exchange:
            raise ClientDisconnected("the response to this request is complete")

    def _check_connected(self) -> None:
        if self.transport.lost:
            raise ClientDisconnected("the client has disconnected")

    @property
    def _body_held_back(self) -> bool:
        """Whether the client waits to be told before it sends the request's body."""
        return self._exchange.continue_expected and not self._exchange.unread

    @property
    def _unread_full(self) -> bool:
        return self._exchange.unread > max(UNREAD_LIMIT, self._config.max_head_size)

    @property
    def _blocked_by_leftover(self) -> bool:
        return self._reading_paused and self._exchange.body_complete

    def _drop_leftover(self) -> None:
        """
        Go on reading, and drop what has come behind the request and what will come.

        A client must be ready to send pipelined requests again (RFC 9112 section 9.3.2). Frames are another matter:
        they must not be sent before the handshake is answered (RFC 6455 section 4.1), and none may be missing from
        a WebSocket, so there will be none.
        """
        self._overrun = True
        self._exchange.must_close = True
        self._exchange.take_leftover()
        self._resume_reading()
        assert self._exchange.request is not None
        if is_upgrade(self._exchange.request):
            self.eof_received()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._unread_full:
            self._reading_paused = False
            self.transport.resume_reading()

    async def _request_head(self) -> RequestHead | None:
        """Wait for a request's head; None if the client ends or idles, or the connection is being drained."""
        idle_timeout = self._config.handshake_timeout if self._first else self._config.keep_alive_timeout
        await self._in_time(
            lambda: self._exchange.begun or self._eof or self._draining, trio.current_time() + idle_timeout
        )
        if not self._exchange.begun:
            return None
        deadline = trio.current_time() + self._config.handshake_timeout
        in_time = True
        while (request := self._exchange.next_request()) is None:
            if self._eof or self._draining:
                return None
            if not in_time:
                raise BadRequest(
                    f"the request's head did not arrive within {self._config.handshake_timeout:g} seconds",
                    HTTPStatus.REQUEST_TIMEOUT,
                )
            await self._data_or(lambda: self._eof or self._draining, deadline)
            # What came late was the last to be looked at: there may be more of it all the time.
            in_time = trio.current_time() < deadline
        self._resume_reading()
        return request

    async def _data_or(self, condition: Callable[[], bool], deadline: float) -> bool:
        """
        Wait for more data than there is now, or until the condition, about this connection, is true.

        Returns False where the deadline is over instead.
        """
        seen = self._exchange.unread
        return await self._in_time(lambda: self._exchange.unread != seen or condition(), deadline)

    async def _in_time(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait for the condition, about this connection, until the deadline; return whether it is true."""
        if await self.transport.timers.in_time(self._changes, condition, deadline):
            return True
        self.transport.look()
        return condition()

    async def _next_body(self, given_up: Callable[[], bool]) -> bytes:
        """Do as `receive_body` says, but raise once the condition, about this object, is true."""
        exchange = self._exchange
        if self.body_error is not None:
            raise _broken_body(self.body_error)
        try:
            while not exchange.body_complete:
                piece = exchange.next_body()
                self._resume_reading()
                if piece is not None:
                    self._body_pace.received(len(piece))
                    return piece
                if given_up():
                    raise ClientDisconnected("the end of the request's body did not come")
                with self._body_pace.waiting() as deadline:
                    in_time = await self._data_or(given_up, deadline)
                self._check_current(exchange)
                if not in_time:
                    raise self._body_pace.too_slow()
        except BadRequest as exc:
            self._check_current(exchange)
            self.body_error = exc
            exchange.must_close = True
            self._changes.announce()
            raise _broken_body(exc) from exc
        return b""

    async def _next_exchange(self) -> bool:
        """Read what is left of the request, and get ready for the next one, if there can be one."""
        if not self._exchange.keep_alive or self._draining or self._overrun:
            return False
        with trio.move_on_after(self._config.keep_alive_timeout):
            await self._skip_body()
        if not self._exchange.reusable:
            return False
        self._exchange = Exchange(self._config, leftover=self._exchange.take_leftover())
        self._body_pace = BodyPace(self._config.body_timeout)
        self.status = None
        self.body_sent = 0
        self._resume_reading()
        return True

    async def _skip_body(self) -> None:
        skipped = 0
        try:
            while skipped < DRAINED_BODY:
                await pace()
                piece = await self._next_body(lambda: self._eof)
                if not piece:
                    return
                skipped += len(piece)
        except ClientDisconnected:
            return


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return the value of a Date field. It is made once a second: that takes longer than all else in a head."""
    return formatdate(second, usegmt=True).encode()


def _broken_body(error: BadRequest) -> ClientDisconnected:
    return ClientDisconnected(f"the request's body is broken: {error}")
