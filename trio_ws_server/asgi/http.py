"""The ASGI ``http`` side of an HTTP exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_ws_server.asgi.events import body_of, headers_of, optional, status_of, type_of, unexpected
from trio_ws_server.errors import ClientDisconnected, InvalidEvent
from trio_ws_server.scheduling import pace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asgiref.typing import HTTPDisconnectEvent, HTTPRequestEvent

    from trio_ws_server.http1 import HttpConnection


class HttpExchange:
    """
    ``receive`` and ``send`` of one request.

    An application may go on calling them when the connection is already at the next request; then there is
    nothing to receive any more but the disconnect, and what is sent is ignored.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._exchange = connection.exchange
        self._request_delivered = False

    def _over(self) -> bool:
        return self._exchange.response_complete or self._connection.exchange is not self._exchange

    async def receive(self) -> HTTPRequestEvent | HTTPDisconnectEvent:
        """
        Return the next piece of the request's body, and after the last ``http.disconnect``.

        Waits for the client to send, and for the disconnect until the client has gone or the response is
        complete. Cancelling it loses nothing.
        """
        if self._request_delivered or self._over():
            await self._connection.disconnected_or(self._over)
            return {"type": "http.disconnect"}
        try:
            body = await self._connection.receive_body()
        except ClientDisconnected:
            self._request_delivered = True
            return {"type": "http.disconnect"}
        self._request_delivered = self._exchange.body_complete
        return {"type": "http.request", "body": body, "more_body": not self._request_delivered}

    async def send(self, event: Mapping[str, Any]) -> None:
        """
        Send what the event says.

        Waits while more than ``write_high_water`` bytes wait to be taken by the client. Cancelling it leaves
        either nothing or the whole event to be sent. Raises `InvalidEvent` for an event that may not be sent,
        or not now; `ClientDisconnected` if the client is gone. What comes after the end of the response is
        ignored, as the specification of ``http.response.body`` has it.
        """
        await pace()
        type_ = type_of(event)
        if self._over():
            return
        if not self._connection.response_started:
            if type_ != "http.response.start":
                raise unexpected(event, "http.response.start")
            start_response(self._connection, event)
        else:
            if type_ != "http.response.body":
                raise unexpected(event, "http.response.body")
            await send_body(self._connection, event)


def start_response(connection: HttpConnection, event: Mapping[str, Any], *, close: bool = False) -> None:
    """
    Send the head of the response that an ``http.response.start`` event, or WebSocket denial's, describes.

    With ``close``, it says that it is the last on the connection.
    """
    try:
        connection.start_response(status_of(event), headers_of(event), close=close)
    except ValueError as exc:
        raise InvalidEvent(f"{event['type']}: {exc}") from exc


async def send_body(connection: HttpConnection, event: Mapping[str, Any]) -> None:
    """Send the part of a body that an ``http.response.body`` event, or WebSocket denial's, holds."""
    more = optional(event, "more_body", bool, default=False)
    try:
        await connection.send_body(body_of(event), more=more)
    except ValueError as exc:
        raise InvalidEvent(f"{event['type']}: {exc}") from exc
