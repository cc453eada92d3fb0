"""Bytes to and from the network, with flow control."""

from trio_ws_server.transport.base import Receiver, Transport
from trio_ws_server.transport.stream import open_stream_transport
from trio_ws_server.transport.tls import TLSStream

__all__ = ["Receiver", "TLSStream", "Transport", "open_stream_transport"]
