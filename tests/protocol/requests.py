"""Streams of requests, and what an `Exchange` after the other makes of them."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.protocol.pieces import cut
from trio_ws_server.config import Config
from trio_ws_server.protocol.http1 import BadRequest, Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 64 * 1024


class Read(NamedTuple):
    """A request as it was read."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Reader:
    """Reads requests from a stream as they come, and answers each with 204."""

    def __init__(self, max_head_size: int = LIMIT, **settings: Any) -> None:
        self.seen: list[Read | HTTPStatus] = []
        """The requests read; if the last of it is a status, what came behind them was refused with that."""
        self.rests: list[bytes] = []
        """What was there behind each of them already, when it was answered."""
        self._config = Config(max_head_size=max_head_size, **settings)
        self.exchange = Exchange(self._config)
        self._body = b""

    def feed(self, pieces: Iterable[bytes]) -> Reader:
        for piece in pieces:
            if self._closed:
                break
            self.exchange.receive_data(piece)
            try:
                while self._one_step():
                    pass
            except BadRequest as exc:
                self.seen.append(exc.status)
        return self

    @property
    def _closed(self) -> bool:
        return self.exchange.response_complete or (bool(self.seen) and isinstance(self.seen[-1], HTTPStatus))

    def _one_step(self) -> bool:
        """Return whether there may be more to read."""
        request = self.exchange.request or self.exchange.next_request()
        if request is None:
            return False
        piece = self.exchange.next_body()
        if piece:
            self._body += piece
        if piece != b"":
            return piece is not None
        self.seen.append(
            Read(request.method, request.target, request.http_version, list(request.headers), self._body)
        )
        self.exchange.respond(204, [])
        self.exchange.end_body()
        self.rests.append(self.exchange.leftover)
        if self.exchange.reusable:
            self.exchange = Exchange(self._config, leftover=self.exchange.leftover)
            self._body = b""
        return not self.exchange.response_complete


def read(stream: bytes, places: Iterable[int] = (), **settings: Any) -> list[Read | HTTPStatus]:
    return Reader(**settings).feed(cut(stream, places)).seen


def lines(*parts: bytes) -> bytes:
    return b"".join(part + b"\r\n" for part in parts)


def get(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    """Return a request without a body."""
    return lines(line, b"Host: example.org", *fields, b"")


def post(*fields: bytes, body: bytes) -> bytes:
    return lines(b"POST / HTTP/1.1", b"Host: example.org", *fields, b"") + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)
