"""ASGI on one side, our connections on the other (ASGI 3.0, HTTP and WebSocket specification 2.5)."""
