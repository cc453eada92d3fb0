"""Who is at the other end of a connection, and where it came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl

    from trio_ws_server.listeners import Address
    from trio_ws_server.tls import ServerTLS


class AgreedTLS(NamedTuple):
    """What a handshake has agreed on. An `ssl.SSLObject` does not tell it any more once it has failed."""

    version: str
    cipher: str
    client_certificates: list[bytes]
    """In DER, the client's own first; the others as far as Python tells."""

    @classmethod
    def of(cls, connection: ssl.SSLObject) -> AgreedTLS:
        """Look at a connection; raises ``ValueError`` before the end of its handshake."""
        certificate = connection.getpeercert(binary_form=True)
        cipher, version = connection.cipher(), connection.version()
        assert cipher is not None
        assert version is not None
        chain: list[bytes] = []
        if certificate is not None:
            # A resumed session keeps the client's own certificate alone.
            chain = getattr(connection, "get_unverified_chain", list)() or [certificate]
        return cls(version, cipher[0], chain)


class Peer(NamedTuple):
    """The two ends of a connection."""

    client: Address | None
    """Where the client is; None for a Unix socket."""
    server: Address | None
    """Where the client connected to."""
    tls: tuple[AgreedTLS, ServerTLS] | None = None
    """The connection's TLS; None where there is none."""

    def __str__(self) -> str:
        """Return the client as logs name it."""
        if self.client is None:
            return "unix" if self.server is not None and self.server[1] is None else "unknown"
        host, port = self.client
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
