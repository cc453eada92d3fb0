"""
Access and connection logs.

What peers and applications can put into a record is escaped here, once for all, and whoever sets up logging: a line
of the log is a line that this server wrote, and a terminal that shows it is told nothing but text.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from trio_ws_server.protocol.websocket import Ending

if TYPE_CHECKING:
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.peer import Peer
    from trio_ws_server.websocket import WebSocket

LEVELS = ("critical", "error", "warning", "info", "debug")

logger = logging.getLogger("trio_ws_server")
access_logger = logging.getLogger("trio_ws_server.access")

_ENDINGS = {
    Ending.LOCAL_CLOSE: "closed by the server",
    Ending.PEER_CLOSE: "closed by the client",
    Ending.PROTOCOL_ERROR: "closed by the server for a protocol error",
    Ending.LOST: "lost",
    None: "dropped",
}


def escaped(text: str) -> str:
    """
    Return the text with what cannot be printed (`str.isprintable`) as it is in a Python string.

    That is line breaks and control characters of all kinds, lone surrogates, and what Unicode has to steer the
    direction of text. Backslashes stay as they are: this is for reading, and not for reading back.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class _Escaped:
    """A record's message, which is formatted when it is asked for, as any message is."""

    def __init__(self, message: object, arguments: Any) -> None:
        self._message = message
        self._arguments = arguments

    def __str__(self) -> str:
        text = str(self._message)
        return escaped(text % self._arguments if self._arguments else text)


def _escape(record: logging.LogRecord) -> bool:
    """
    Escape a record, for whatever handlers and formatters there are.

    A traceback stays one, but behind its first line, which is ours, it is indented: exceptions' messages can have
    several lines, none of which is to pass for a record.
    """
    record.msg, record.args = _Escaped(record.msg, record.args), None
    if record.exc_info:
        lines = logging.Formatter().formatException(record.exc_info).split("\n")
        record.exc_text = "\n  ".join(map(escaped, lines))
    return True


# A filter of the loggers and not of a handler, which the program may bring.
logger.addFilter(_escape)
access_logger.addFilter(_escape)


def configure(level: str) -> None:
    """Log to standard error, unless the program has set up logging itself."""
    logger.setLevel(level.upper())
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        # What sets up the root logger later, such as an application's logging.basicConfig, must not say it again.
        logger.propagate = False


def log_request(
    peer: Peer, request: RequestHead, *, status: int | None, complete: bool, body_sent: int, seconds: float
) -> None:
    """Log a request and the response to it, which may be cut off; a status of None says that there was none."""
    access_logger.info(
        '%s "%s %s HTTP/%s" %s %d bytes%s in %.1f ms',
        peer,
        request.method.decode("ascii"),
        request.target.decode("ascii"),
        request.http_version.decode("ascii"),
        "no response" if status is None else status,
        body_sent,
        "" if complete or status is None else ", cut off",
        seconds * 1000,
    )


def log_websocket_accepted(peer: Peer, websocket: WebSocket) -> None:
    """Log that a WebSocket connection is open."""
    subprotocol = "" if websocket.subprotocol is None else f", subprotocol {websocket.subprotocol}"
    access_logger.info('%s "WebSocket %s" accepted%s', peer, websocket.path, subprotocol)


def log_websocket_ended(peer: Peer, websocket: WebSocket, *, seconds: float) -> None:
    """Log how a WebSocket connection ended, and what it has seen."""
    close = websocket.close_seen
    traffic = websocket.traffic
    access_logger.info(
        '%s "WebSocket %s" %s with %d%s after %.3f s; received %d messages, %d bytes; sent %d messages, %d bytes',
        peer,
        websocket.path,
        _ENDINGS[websocket.ending],
        close.code,
        f" {close.reason!r}" if close.reason else "",
        seconds,
        traffic.messages_received,
        traffic.bytes_received,
        traffic.messages_sent,
        traffic.bytes_sent,
    )
