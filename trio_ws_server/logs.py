"""Access and connection logs."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from trio_ws_server.protocol.websocket import Ending

if TYPE_CHECKING:
    import h11

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
    peer: Peer, request: h11.Request, *, status: int | None, complete: bool, body_sent: int, seconds: float
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
