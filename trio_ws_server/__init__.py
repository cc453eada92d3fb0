"""
An ASGI-compatible WebSocket server on Trio, with a native handler API and a client.

`serve` and `run` serve a native handler or an ASGI application, `connect` is the client. On the command line:
``trio-ws-server module:app``.
"""

from trio_ws_server.client import connect
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.config import Config
from trio_ws_server.errors import (
    AppImportError,
    BindError,
    ClientDisconnected,
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    InvalidEvent,
    InvalidStatus,
    InvalidURI,
    LifespanError,
)
from trio_ws_server.headers import Headers, Request
from trio_ws_server.server import Server
from trio_ws_server.serving import run, serve
from trio_ws_server.tls import ServerTLS, server_tls
from trio_ws_server.websocket import WebSocket

__version__ = "0.1.0"

__all__ = [
    "AppImportError",
    "BindError",
    "ClientDisconnected",
    "Close",
    "CloseCode",
    "Config",
    "ConfigError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "HandshakeError",
    "Headers",
    "InvalidEvent",
    "InvalidStatus",
    "InvalidURI",
    "LifespanError",
    "Request",
    "Server",
    "ServerTLS",
    "WebSocket",
    "connect",
    "run",
    "serve",
    "server_tls",
]
