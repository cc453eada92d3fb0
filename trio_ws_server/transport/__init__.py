"""Bytes to and from the network, with flow control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_ws_server.transport.base import Receiver, Transport
from trio_ws_server.transport.engine import Engine, open_engine
from trio_ws_server.transport.poller import Poller
from trio_ws_server.transport.socket import SocketTransport
from trio_ws_server.transport.stream import StreamTransport
from trio_ws_server.transport.timers import Timer
from trio_ws_server.transport.tls import TLSStream
from trio_ws_server.transport.tls_socket import TLSTransport

if TYPE_CHECKING:
    from trio.abc import Stream

    from trio_ws_server.config import Config

__all__ = ["Engine", "Receiver", "TLSStream", "Timer", "Transport", "open_engine", "open_transport"]


def open_transport(stream: Stream, config: Config, engine: Engine) -> Transport:
    """
    Take over a stream: straight on its socket, where there is a poller, and it has one.

    Of a `TLSStream` the handshake must be done.
    """
    match stream, engine.poller:
        case trio.SocketStream(), Poller() as poller:
            return SocketTransport(stream.socket, config, engine, poller)
        case TLSStream(stream=trio.SocketStream() as below), Poller() as poller:
            return TLSTransport(below.socket, stream.tls, config, engine, poller)
    return StreamTransport(stream, config, engine)
