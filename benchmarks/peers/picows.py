"""picows on uvloop, which has neither compression nor coroutines for its handlers."""

from __future__ import annotations

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.peers.arguments import Arguments

_CLIENTS: list[WSTransport] = []


class Echo(WSListener):
    """Sends every message back."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a frame."""
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class FanOut(Echo):
    """Sends every message to all clients."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take a client."""
        _CLIENTS.append(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a frame."""
        payload = frame.get_payload_as_bytes()
        for client in _CLIENTS:
            client.send(frame.msg_type, payload)


def echo(_request: WSUpgradeRequest) -> WSListener:
    """Return the handler of a connection."""
    return Echo()


def fan_out(_request: WSUpgradeRequest) -> WSListener:
    """Return the handler of a connection."""
    return FanOut()


async def main(arguments: Arguments) -> None:
    """Serve for ever."""
    factory = fan_out if arguments.fan_out else echo
    server = await ws_create_server(factory, "127.0.0.1", arguments.port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Arguments.parse()))
