"""The ASGI ``websocket`` side of a connection: connect, accept or deny, messages, close."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from trio_ws_server.asgi.events import (
    close_of,
    headers_of,
    message_of,
    not_unicode,
    optional,
    type_of,
    unexpected,
)
from trio_ws_server.asgi.http import send_body, start_response
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.errors import ClientDisconnected, ConnectionClosed, InvalidEvent
from trio_ws_server.scheduling import pace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asgiref.typing import WebSocketConnectEvent, WebSocketDisconnectEvent, WebSocketReceiveEvent

    from trio_ws_server.upgrade import Upgrade
    from trio_ws_server.websocket import WebSocket


class _Phase(Enum):
    """What the application has made of the connection."""

    CONNECTING = "neither accepted nor denied"
    ACCEPTED = "accepted"
    DENYING = "answered with a response that is not complete"
    CLOSED = "closed or denied"


# Looked up once.
_ACCEPTED = _Phase.ACCEPTED


class WebSocketSession:
    """``receive`` and ``send`` of one WebSocket connection."""

    __slots__ = ("_connect_delivered", "_phase", "_upgrade", "_websocket")

    def __init__(self, upgrade: Upgrade) -> None:
        self._upgrade = upgrade
        self._websocket: WebSocket | None = None
        self._phase = _Phase.CONNECTING
        self._connect_delivered = False

    async def receive(self) -> WebSocketConnectEvent | WebSocketReceiveEvent | WebSocketDisconnectEvent:
        """
        Return ``websocket.connect``, then each message, then, as often as asked, ``websocket.disconnect``.

        Waits for the peer. Before the connection is accepted, that can only be for its disconnect or for
        another task to accept it. Cancelling it loses no message.
        """
        if not self._connect_delivered:
            await pace()
            self._connect_delivered = True
            return {"type": "websocket.connect"}
        if self._websocket is None:
            await self._upgrade.decided_or_disconnected()
        if self._websocket is None:
            return _disconnect(Close(CloseCode.ABNORMAL_CLOSURE))
        inbox = self._websocket.inbox
        await inbox.arrival()
        while (message := inbox.take()) is None and inbox.receiving:
            await inbox.arrival()
        if message is None:
            return _disconnect(self._websocket.close_seen)
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message, "bytes": None}
        return {"type": "websocket.receive", "bytes": message, "text": None}

    async def send(self, event: Mapping[str, Any]) -> None:
        """
        Do what the event says.

        Waits while more than ``write_high_water`` bytes wait to be taken by the peer. Cancelling it leaves
        either nothing or the whole event done. Raises `InvalidEvent` for an event that may not be sent, or not
        now; `ClientDisconnected` if the peer has gone. Closing a connection that the peer closed first is no
        error: there is nothing left to do.
        """
        # To look for a dict first is quick.
        type_ = event.get("type") if isinstance(event, dict) else type_of(event)
        if type_ == "websocket.send" and self._phase is _ACCEPTED:
            assert self._websocket is not None
            message = message_of(event)
            await pace()
            try:
                if (rest := self._websocket.begin_to_send(message)) is not None:
                    await rest
            except ConnectionClosed as exc:
                raise ClientDisconnected(f"the WebSocket connection is closed: {exc}") from exc
            except UnicodeEncodeError as exc:
                raise not_unicode(event, "text", exc) from exc
        else:
            await self._go_on(event)

    async def _go_on(self, event: Mapping[str, Any]) -> None:
        """Do what an event says that is no message."""
        type_ = type_of(event)
        await pace()
        match self._phase, type_:
            case _Phase.CONNECTING, "websocket.accept":
                self._accept(event)
            case _Phase.CONNECTING, "websocket.close":
                # Code and reason have no place in the response, and are not looked at: FastAPI's reason is a list.
                self._phase = _Phase.CLOSED
                await self._upgrade.reject(403)
            case _Phase.CONNECTING, "websocket.http.response.start":
                self._upgrade.check_connected()
                start_response(self._upgrade.http, event, close=True)
                self._phase = _Phase.DENYING
            case _Phase.CONNECTING, _:
                raise unexpected(
                    event, "websocket.accept", "websocket.close", "websocket.http.response.start"
                )
            case _Phase.DENYING, "websocket.http.response.body":
                await send_body(self._upgrade.http, event)
                if self._upgrade.http.response_complete:
                    self._phase = _Phase.CLOSED
            case _Phase.DENYING, _:
                raise unexpected(event, "websocket.http.response.body")
            case _Phase.ACCEPTED, "websocket.close":
                assert self._websocket is not None
                close = close_of(event)
                self._phase = _Phase.CLOSED
                self._websocket.start_closing(close)
            case _Phase.ACCEPTED, _:
                raise unexpected(event, "websocket.send", "websocket.close")
            case _:
                raise InvalidEvent(f"unexpected event {type_!r}: the application has closed this connection")

    def _accept(self, event: Mapping[str, Any]) -> None:
        subprotocol = optional(event, "subprotocol", str, "") or None
        headers = headers_of(event)
        self._upgrade.check_connected()
        try:
            self._websocket = self._upgrade.accept(subprotocol=subprotocol, headers=headers)
        except ValueError as exc:
            raise InvalidEvent(f"{event['type']}: {exc}") from exc
        self._phase = _Phase.ACCEPTED


def _disconnect(close: Close) -> WebSocketDisconnectEvent:
    return {"type": "websocket.disconnect", "code": close.code, "reason": close.reason}
