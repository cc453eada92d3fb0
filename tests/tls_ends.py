"""TLS of both ends of a connection, by `ssl` alone: contexts that trust each other, and handshakes in memory."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import NamedTuple

import trustme

CA = trustme.CA()
SERVER_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("server.test", "127.0.0.1").configure_cert(SERVER_CONTEXT)
# On in Debian's Python, where it makes a connection that is cut look like one that is ended.
SERVER_CONTEXT.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return a context that trusts the server's, for this version of TLS at most."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.maximum_version = version
    return context


class End(NamedTuple):
    """What one end knows of a connection, and the ciphertext on its way into and out of it."""

    ssl_object: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @classmethod
    def of_client(cls, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> End:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ssl_object = context.wrap_bio(incoming, outgoing, server_hostname="server.test", session=session)
        return cls(ssl_object, incoming, outgoing)

    @classmethod
    def of_server(cls, context: ssl.SSLContext) -> End:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)


def shake_hands(client: End, server: End) -> None:
    """Make the handshake between two ends; raises ``ssl.SSLError`` if it fails."""
    for _ in range(3):
        for end, other in (client, server), (server, client):
            with suppress(ssl.SSLWantReadError):
                end.ssl_object.do_handshake()
            other.incoming.write(end.outgoing.read())
