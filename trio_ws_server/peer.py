"""Who is at the other end of a connection, and where it came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl

    from trio_ws_server.listeners import Address
    from trio_ws_server.tls import ServerTLS


class Peer(NamedTuple):
    """The two ends of a connection."""

    client: Address | None
    """Where the client is; None for a Unix socket."""
    server: Address | None
    """Where the client connected to."""
    tls: tuple[ssl.SSLObject, ServerTLS] | None = None
    """The connection's TLS, its handshake done; None where there is none."""

    def __str__(self) -> str:
        """Return the client as logs name it."""
        if self.client is None:
            return "unix" if self.server is not None and self.server[1] is None else "unknown"
        host, port = self.client
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
