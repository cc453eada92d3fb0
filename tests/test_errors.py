"""The public exceptions: what they are instances of, and what they say."""

from __future__ import annotations

import inspect
import pickle

import pytest

import trio_ws_server
from trio_ws_server import errors
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import (
    BindError,
    ClientDisconnected,
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    InvalidStatus,
    InvalidURI,
)

NAMES = [
    name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
]


@pytest.mark.parametrize("name", NAMES)
def test_every_exception_is_a_public_name_of_the_package(name: str) -> None:
    assert name in trio_ws_server.__all__
    assert getattr(trio_ws_server, name) is getattr(errors, name)


@pytest.mark.parametrize(
    ("exception", "base"),
    [
        (ClientDisconnected, OSError),  # ASGI HTTP and WebSocket specification 2.4
        (BindError, OSError),
        (ConfigError, ValueError),
        (InvalidURI, ValueError),
        (InvalidStatus, HandshakeError),
        (ConnectionClosedOK, ConnectionClosed),
        (ConnectionClosedError, ConnectionClosed),
    ],
)
def test_it_can_be_caught_as_what_it_also_is(exception: type[Exception], base: type[Exception]) -> None:
    assert issubclass(exception, base)


@pytest.mark.parametrize(
    ("received", "sent", "code", "reason", "text"),
    [
        (Close(1000), Close(1000), 1000, "", "received 1000 (normal closure); sent 1000 (normal closure)"),
        (Close(4000, "why"), None, 4000, "why", "received 4000 'why'; none sent"),
        (None, Close(1001, "bye"), 1006, "", "no close frame received; sent 1001 (going away) 'bye'"),
        (None, None, 1006, "", "no close frame received; none sent"),
    ],
)
def test_a_closed_connection_says_what_was_received_and_sent_and_its_code(
    received: Close | None, sent: Close | None, code: int, reason: str, text: str
) -> None:
    closed = ConnectionClosedError(received, sent)
    assert (closed.received, closed.sent, closed.code, closed.reason) == (received, sent, code, reason)
    assert str(closed) == text


def test_a_refused_handshake_shows_the_response() -> None:
    refused = InvalidStatus(403, [(b"a", b"b")], b"no")
    assert (refused.status, refused.headers, refused.body) == (403, [(b"a", b"b")], b"no")
    assert str(refused) == "the server answered the opening handshake with HTTP status 403, not 101"


@pytest.mark.parametrize(
    "error", [ConnectionClosedOK(Close(1000), Close(1000)), InvalidStatus(403, [], b"no")]
)
def test_it_survives_pickling_on_its_way_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, str(copy)) == (type(error), error.args, str(error))
