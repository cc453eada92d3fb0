"""What other implementations make of the bytes of a WebSocket connection: wsproto, and the `websockets` library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from websockets.extensions.permessage_deflate import PerMessageDeflate as WebsocketsDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as WebsocketsProtocol
from websockets.protocol import Side
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong as WsprotoPong
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from trio_ws_server.close_codes import Close
from trio_ws_server.protocol.websocket import Ping, Pong

if TYPE_CHECKING:
    from wsproto.extensions import Extension

    from tests.protocol.ends import Link, Received


def read_by_wsproto(link: Link, stream: bytes, *, closing: bool = False) -> list[Received | Close]:
    """
    Return what wsproto makes of a stream, its pieces of messages put together, errors as their code.

    When it is ``closing`` it has sent a close frame.
    """
    extensions: list[Extension] = []
    if link.deflate is not None:
        extensions.append(WsprotoDeflate())
        extensions[0].finalize(f"permessage-deflate{link.deflate}")
    connection = Connection(ConnectionType.CLIENT if link.client else ConnectionType.SERVER, extensions)
    if closing:
        connection.send(CloseConnection(1001))
    may_fail = connection.state
    connection.receive_data(stream)
    events: list[Received | Close] = []
    parts: list[str | bytes] = []
    for event in connection.events():
        match event:
            case Message(data=data, message_finished=finished):
                parts.append(data)
                if finished:
                    empty: str | bytes = b"" if isinstance(event, BytesMessage) else ""
                    events.append(empty.join(parts))  # type: ignore[arg-type]
                    parts.clear()
            case WsprotoPing(payload=payload):
                events.append(Ping(bytes(payload)))
            case WsprotoPong(payload=payload):
                events.append(Pong(bytes(payload)))
            case CloseConnection(code=code, reason=reason):
                failed = connection.state is may_fail
                events.append(Close(code, "" if failed else reason or ""))
    return events


def read_by_websockets(link: Link, stream: bytes) -> list[Received | Close]:
    """Return what the `websockets` library makes of a stream, but for errors."""
    end = websockets_end(link)
    end.receive_data(stream)
    events: list[Received | Close] = []
    message = b""
    is_text = False
    for each in end.events_received():
        assert isinstance(each, Frame)
        match each.opcode:
            case Opcode.PING:
                events.append(Ping(bytes(each.data)))
            case Opcode.PONG:
                events.append(Pong(bytes(each.data)))
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                if each.opcode is not Opcode.CONT:
                    is_text = each.opcode is Opcode.TEXT
                message += each.data
                if each.fin:
                    events.append(message.decode() if is_text else message)
                    message = b""
    if end.close_rcvd is not None:
        events.append(Close(end.close_rcvd.code, end.close_rcvd.reason))
    return events


def websockets_end(link: Link) -> WebsocketsProtocol:
    end = WebsocketsProtocol(Side.CLIENT if link.client else Side.SERVER, max_size=None)
    if link.deflate is not None:
        no_takeover, bits = "no_context_takeover" in link.deflate, 9 if "bits=9" in link.deflate else 15
        end.extensions = [WebsocketsDeflate(no_takeover, no_takeover, bits, bits)]
    return end
