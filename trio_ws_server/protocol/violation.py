"""What a peer does wrong."""

from __future__ import annotations


class Violation(Exception):
    """The peer has broken the protocol; never seen outside of `protocol.websocket`, which fails the connection."""

    def __init__(self, code: int, reason: str = "") -> None:
        """Give the close code, and the words if there are any, that the peer is to be told."""
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
