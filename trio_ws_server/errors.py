"""Every public exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_ws_server.close_codes import Close, CloseCode

if TYPE_CHECKING:
    from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting has a value that it cannot have; the message names the setting and the value."""


class BindError(OSError):
    """An address could not be listened on; the message names it and says why."""


class AppImportError(Exception):
    """An import string does not lead to an application; the message says how far it got."""


class LifespanError(Exception):
    """The application reported that its startup failed (ASGI ``lifespan.startup.failed``)."""


class InvalidEvent(RuntimeError):
    """
    An ASGI application sent an event that it may not send, or not now.

    Raised in the application, out of its ``send()``; nothing has been sent.
    """


class ClientDisconnected(OSError):
    """
    An ASGI application sent to a client that has gone.

    An ``OSError``, as the ASGI HTTP and WebSocket specification 2.4 asks. An application may let it
    propagate: it is no error of the application and not logged as one.
    """


class ConnectionClosed(Exception):
    """
    The WebSocket connection is closed: nothing more can be sent, and every message received was delivered.

    ``received`` and ``sent`` are the close frames that arrived and that went out, each ``None`` where there
    was none.
    """

    def __init__(self, received: Close | None, sent: Close | None) -> None:
        super().__init__(received, sent)
        self.received = received
        self.sent = sent

    @property
    def code(self) -> int:
        """The connection's close code (RFC 6455 section 7.1.5): the peer's, 1006 if it sent no close frame."""
        return CloseCode.ABNORMAL_CLOSURE if self.received is None else self.received.code

    @property
    def reason(self) -> str:
        """The peer's close reason, empty if it gave none."""
        return "" if self.received is None else self.received.reason

    def __str__(self) -> str:
        received = "no close frame received" if self.received is None else f"received {self.received}"
        sent = "none sent" if self.sent is None else f"sent {self.sent}"
        return f"{received}; {sent}"


class ConnectionClosedOK(ConnectionClosed):
    """The connection ended with a closing handshake, with codes 1000, 1001 or none."""


class ConnectionClosedError(ConnectionClosed):
    """The connection was lost, or ended with a close code that tells of an error."""


class HandshakeError(Exception):
    """The opening handshake failed: ``connect()`` found no WebSocket server, or not the one it wants."""


class InvalidStatus(HandshakeError):
    """The server answered the opening handshake with an HTTP status other than 101."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(status, headers, body)
        self.status = status
        self.headers = list(headers)
        self.body = body

    def __str__(self) -> str:
        return f"the server answered the opening handshake with HTTP status {self.status}, not 101"


class InvalidURI(ValueError):
    """A WebSocket URI that cannot be connected to; the message says what is wrong with it."""
