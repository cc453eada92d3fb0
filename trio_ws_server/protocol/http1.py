"""
HTTP/1.1 exchanges, server side, on h11.

h11 parses and frames. It is liberal where an intermediary and we could come to read the same bytes as
different requests (RFC 9112 section 11.2), so a request head is looked at before h11 gets it: what is
ambiguous is refused, never repaired.

Each exchange has an h11 connection of its own. What the peer sent ahead (a pipelined request, or WebSocket
frames behind an upgrade) is thereby always where the exchange before left it: in `Exchange.leftover`.
"""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

from trio_ws_server.headers import RequestHead
from trio_ws_server.protocol.allowed import host_allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trio_ws_server.config import Config

HEAD_END = b"\r\n\r\n"
# This and what begins a field are looked for by what is rare: other bytes are passed over ten times as fast.
BARE_LINE_BREAK = re.compile(rb"[\r\n](?<!\r\n)(?<!\r(?=\n|\Z))")
_FAULTS = {
    "lines must end in CR LF": BARE_LINE_BREAK,
    "fields must not be folded over several lines": re.compile(rb"\r\n[ \t]"),
    # RFC 9110 section 5.5: h11 lets all but NUL pass, which Go and Node refuse.
    "lines must not hold control characters": re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}
# Where a field begins: behind the first line, before which the end of a chunk may be.
_FIELD = re.compile(rb"\r\n(?<=[^\n]..)[^\r\n]", re.DOTALL)
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
_TRANSFER_ENCODING = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
# RFC 9112 section 3.2: origin-form, absolute-form (of a URI with a host: RFC 9110 section 4.2.1), asterisk-form.
_ORIGIN_FORM = re.compile(rb"/[^#]*")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE)
# RFC 9110 section 7.2, RFC 3986 section 3.2.2: a name, an IPv4 address or a literal in brackets; a port.
_HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]*|\[[\w.~!$&'()*+,;=%:-]+\])(:[0-9]*)?")

# What the head of a request for a WebSocket holds, most of the time. An application has it as long as the
# connection is open: of these, all connections have the same objects, each of which would take some 50 bytes.
_COMMON = {
    word: word
    for word in (
        b"GET 1.1 host upgrade connection origin user-agent cookie authorization pragma cache-control "
        b"accept accept-encoding accept-language sec-fetch-dest sec-fetch-mode sec-fetch-site "
        b"sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version "
        b"forwarded via x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-real-ip "
        b"Upgrade keep-alive no-cache websocket 13"
    ).split()
}


class BadRequest(Exception):
    """A request that is answered with an error status; the connection is closed after it."""

    def __init__(
        self,
        detail: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = list(headers)


class Exchange:
    """One request from a client and the response to it."""

    def __init__(self, config: Config, *, leftover: bytes = b"") -> None:
        self.request: RequestHead | None = None
        self.must_close = False
        """Set before the response starts, it says ``Connection: close`` in it."""
        # What h11 may hold of lines that are not complete is bounded by _Lines.
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=sys.maxsize)
        self._config = config
        self._lines = _Lines(config)
        self._unread = bytearray(leftover)
        self._chunks: bytearray | None = None
        """Of a chunked body that is not complete: what h11 has been given and not yet returned."""

    # What the client sends.

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._unread += data

    @property
    def unread(self) -> int:
        """How many bytes wait to be taken by `next_request`, `next_body` or `take_leftover`."""
        return len(self._unread)

    @property
    def leftover(self) -> bytes:
        """The bytes that arrived behind this request, once the whole of it has been read."""
        return bytes(self._unread)

    def take_leftover(self) -> bytes:
        """Return the `leftover`, which is empty from then on."""
        leftover = self.leftover
        self._unread.clear()
        return leftover

    @property
    def begun(self) -> bool:
        """Whether anything of the request has arrived; empty lines before it are nothing."""
        return bool(self._unread.lstrip(b"\r\n"))

    def next_request(self) -> RequestHead | None:
        """
        Return the request once its head is complete, else None. Raises `BadRequest`.

        Its target is a path and query, or ``*``: a target in absolute form has become one.
        """
        # RFC 9112 section 2.2: ignore empty lines before the request line.
        while self._unread.startswith(b"\r\n"):
            del self._unread[:2]
        if self._unread and self._unread[0] <= 0x20 and self._unread[:1] != b"\r":
            raise BadRequest("this is not an HTTP/1.1 request (perhaps TLS was meant?)")
        end = self._unread.find(HEAD_END, max(0, self._lines.checked - len(HEAD_END)))
        size = len(self._unread) if end < 0 else end + len(HEAD_END)
        self._lines.check(self._unread, size)
        if end < 0:
            return None
        head = bytes(self._unread[:size])
        _check_framing(head)
        del self._unread[:size]
        self._lines = _Lines(self._config)
        self._h11.receive_data(head)
        event = self._h11_next()
        assert isinstance(event, h11.Request)
        self.request = request = _in_origin_form(
            RequestHead(
                _shared(event.method),
                event.target,
                _shared(event.http_version),
                [(_shared(name), _shared(value)) for name, value in event.headers],
            )
        )
        _check_request(request, self._config.allowed_hosts)
        if field_values(request, b"transfer-encoding"):
            self._chunks = bytearray()
        # h11 sees the end of a request without a body only when it is asked for it.
        self._h11_next()
        return request

    def next_body(self) -> bytes | None:
        """
        Return the next piece of the request's body, ``b""`` at its end, or None where more data is needed.

        Raises `BadRequest` where the body's framing is broken.
        """
        if self.body_complete:
            return b""
        event = self._h11_next()
        if event is h11.NEED_DATA and self._unread:
            # Only now: what h11 holds is not counted in `unread`, by which the reader of the network is paused.
            self._h11.receive_data(bytes(self._unread))
            if self._chunks is not None:
                self._chunks += self._unread
            self._unread.clear()
            event = self._h11_next()
        if self._chunks is not None:
            self._check_chunks(event)
        match event:
            case h11.NEED_DATA:
                return None
            case h11.Data(data=data):
                return bytes(data)
            case _:
                self._unread[:0] = self._h11.trailing_data[0]
                return b""

    @property
    def body_complete(self) -> bool:
        """Whether the whole request has been read."""
        return self._chunks is None and self._h11.their_state not in (h11.IDLE, h11.SEND_BODY, h11.ERROR)

    @property
    def continue_expected(self) -> bool:
        """Whether the client waits for ``100 Continue`` before it sends the body (RFC 9110 section 10.1.1)."""
        return self._h11.they_are_waiting_for_100_continue

    # What the server sends.

    @property
    def response_started(self) -> bool:
        """Whether the response's head has been made."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def response_complete(self) -> bool:
        """Whether the whole response has been made."""
        return self._h11.our_state in (h11.DONE, h11.MUST_CLOSE)

    @property
    def keep_alive(self) -> bool:
        """Whether the response is complete and not the last on the connection (RFC 9112 section 9.3)."""
        return self._h11.our_state is h11.DONE

    @property
    def reusable(self) -> bool:
        """Whether the connection can take another exchange: `keep_alive`, and the whole request has been read."""
        return self.keep_alive and self.body_complete and self._h11.their_state is h11.DONE

    def continue_(self) -> bytes:
        """Return the bytes of ``100 Continue``."""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    def switch_protocols(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """
        Return the bytes of ``101 Switching Protocols``, the response to a request for an upgrade.

        Nothing else can be sent after it. Raises ``ValueError`` for header fields that cannot be sent; any response
        can still be made then.
        """
        try:
            response = h11.InformationalResponse(
                status_code=HTTPStatus.SWITCHING_PROTOCOLS, headers=headers, reason=b"Switching Protocols"
            )
            return self._h11.send(response)
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """
        Return the bytes of the response's head. The framing is added: ``Transfer-Encoding`` fields are ignored.

        Raises ``ValueError`` for what cannot be sent.
        """
        fields = [(name, value) for name, value in headers if name.lower() != b"transfer-encoding"]
        if self.must_close:
            fields.append((b"connection", b"close"))
        try:
            response = h11.Response(status_code=status, headers=fields, reason=_reason_phrase(status))
            return self._h11.send(response)
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc

    def send_body(self, data: bytes) -> bytes:
        """
        Return the bytes of a piece of the response's body; of a response to HEAD, none.

        Raises ``ValueError`` where the response's head does not allow so much of a body.
        """
        if self.request is not None and self.request.method == b"HEAD":
            return b""
        try:
            return self._h11.send(h11.Data(data=data))
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc

    def end_body(self) -> bytes:
        """
        Return the bytes that end the response's body.

        Raises ``ValueError`` where the response's head announced more of a body.
        """
        try:
            return self._h11.send(h11.EndOfMessage())
        except h11.LocalProtocolError as exc:
            raise ValueError(str(exc)) from exc

    def _h11_next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            if self._chunks is not None:
                # h11 looks at a trailer section once it is complete: what was wrong before that counts.
                self._lines.check(self._chunks, self._chunks_taken())
            raise BadRequest(str(exc), HTTPStatus(exc.error_status_hint)) from exc

    def _check_chunks(self, event: object) -> None:
        """Check what of a chunked body is no data: its chunk sizes and trailer fields are lines too."""
        assert self._chunks is not None
        if event is h11.NEED_DATA:
            self._lines.check(self._chunks, len(self._chunks))
            return
        taken = self._chunks_taken()
        self._lines.check(self._chunks, taken - (len(event.data) if isinstance(event, h11.Data) else 0))
        del self._chunks[:taken]
        self._lines = _Lines(self._config)
        if isinstance(event, h11.EndOfMessage):
            self._chunks = None

    def _chunks_taken(self) -> int:
        assert self._chunks is not None
        return len(self._chunks) - len(self._h11.trailing_data[0])


class _Lines:
    """Lines as they arrive, of a head or of a chunk's size and what follows the last chunk."""

    def __init__(self, config: Config) -> None:
        self.checked = 0
        """How many bytes need not be looked at again, which a peer that sends them one by one would like."""
        self._fields = 0
        self._max_size = config.max_head_size
        self._max_fields = config.max_header_fields

    def check(self, data: bytearray, size: int) -> None:
        """
        Look at the first ``size`` bytes, of which more may have come since the last time.

        Raises `BadRequest`, as soon as they appear, for lines that others may see ended or joined elsewhere than we
        do, and for too many of them: for whatever comes first, wherever the lines are cut.
        """
        start = max(0, self.checked - len(HEAD_END))
        end = min(size, self._max_size)
        found = [
            (match.start(), what)
            for what, pattern in _FAULTS.items()
            if (match := pattern.search(data, start, end)) is not None
        ]
        sound, fault = min(found, default=(end, None))
        fields = self._fields + len(_FIELD.findall(data, max(0, self.checked - 2), sound))
        if fields > self._max_fields:
            raise BadRequest(
                f"more than {self._max_fields} header or trailer fields",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            )
        if fault is not None:
            raise BadRequest(fault)
        if size > self._max_size:
            raise BadRequest(
                f"header or trailer fields of more than {self._max_size} bytes",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            )
        self.checked = end
        self._fields = fields


def _shared(word: bytes) -> bytes:
    return _COMMON.get(word, word)


def _check_framing(head: bytes) -> None:
    """Refuse requests whose length others may see otherwise (RFC 9112 section 6.3)."""
    lengths = _CONTENT_LENGTH.findall(head)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        raise BadRequest("more than one Content-Length")
    if lengths and _TRANSFER_ENCODING.search(head):
        raise BadRequest("both Content-Length and Transfer-Encoding")


def _in_origin_form(request: RequestHead) -> RequestHead:
    """
    Return the request with a target in absolute form taken apart (RFC 9112 section 3.2.2).

    The target is then path and query alone, and the authority takes the place of the Host field.
    """
    absolute = _ABSOLUTE_FORM.fullmatch(request.target)
    if absolute is None:
        return request
    authority, target = absolute.groups()
    headers = [(name, authority if name == b"host" else value) for name, value in request.headers]
    if not field_values(request, b"host"):
        headers.insert(0, (b"host", authority))
    return request._replace(target=target if target.startswith(b"/") else b"/" + target, headers=headers)


def _check_request(request: RequestHead, allowed_hosts: tuple[str, ...]) -> None:
    if not request.http_version.startswith(b"1."):
        raise BadRequest(
            f"HTTP version {request.http_version.decode()} is not spoken here, HTTP/1.1 is",
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
        )
    if request.method == b"CONNECT":
        raise BadRequest("CONNECT is for proxies", HTTPStatus.NOT_IMPLEMENTED)
    if request.http_version == b"1.0" and field_values(request, b"transfer-encoding"):
        # RFC 9112 section 6.1
        raise BadRequest("Transfer-Encoding in an HTTP/1.0 request")
    asterisk_form = request.target == b"*" and request.method == b"OPTIONS"
    if not asterisk_form and not _ORIGIN_FORM.fullmatch(request.target):
        raise BadRequest(f'request target {request.target.decode()!r} must be a path that starts with "/"')
    # RFC 9112 section 3.2. h11 has seen to it that there is not more than one.
    hosts = field_values(request, b"host")
    if request.http_version != b"1.0" and not hosts:
        raise BadRequest("the header field Host is missing")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise BadRequest("the header field Host names no host")
    if not host_allowed(hosts, allowed_hosts):
        host = f"host {hosts[0].decode()!r}" if hosts else "a request without a host"
        raise BadRequest(f"{host} is not served here (--allowed-host)", HTTPStatus.MISDIRECTED_REQUEST)


def field_values(request: RequestHead, name: bytes) -> list[bytes]:
    """Return the values of all fields of this name, which is in lower case."""
    return [value for field, value in request.headers if field == name]


def _reason_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
