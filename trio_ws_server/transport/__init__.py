"""Bytes to and from the network, with flow control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_ws_server.transport.base import Receiver, Transport
from trio_ws_server.transport.engine import Engine, open_engine
from trio_ws_server.transport.socket import SocketTransport
from trio_ws_server.transport.stream import StreamTransport
from trio_ws_server.transport.timers import Timer
from trio_ws_server.transport.tls import TLSStream

if TYPE_CHECKING:
    from trio.abc import Stream

    from trio_ws_server.config import Config

__all__ = ["Engine", "Receiver", "TLSStream", "Timer", "Transport", "open_engine", "open_transport"]


def open_transport(stream: Stream, config: Config, engine: Engine) -> Transport:
    """Take over a stream: straight on its socket, where it is a plain one and there is a poller."""
    if engine.poller is not None and isinstance(stream, trio.SocketStream):
        return SocketTransport(stream.socket, config, engine, engine.poller)
    return StreamTransport(stream, config, engine)
