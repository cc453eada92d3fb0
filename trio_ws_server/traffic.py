"""What a connection has carried."""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """Data messages that a connection has seen so far, and the bytes of their payloads (text in UTF-8)."""

    messages_received: int
    bytes_received: int
    messages_sent: int
    bytes_sent: int
