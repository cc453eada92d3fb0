"""Close codes of RFC 6455 section 7.4, and the code and reason that a close frame carries."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

MAX_REASON_BYTES = 123
"""A control frame's payload is at most 125 bytes (RFC 6455 section 5.5); the code takes two."""


class CloseCode(IntEnum):
    """Close codes with a registered meaning (the IANA WebSocket close code registry)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


_NEVER_SENT = {CloseCode.NO_STATUS_RCVD, CloseCode.ABNORMAL_CLOSURE, CloseCode.TLS_HANDSHAKE}
"""RFC 6455 section 7.4.1: these describe a connection's end and never appear in a close frame."""

_NAMES = {int(code): code.name.lower().replace("_", " ") for code in CloseCode}

_SENDABLE = frozenset(int(code) for code in CloseCode) - _NEVER_SENT


class Close(NamedTuple):
    """What a close frame said."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        name = f" ({_NAMES[self.code]})" if self.code in _NAMES else ""
        reason = f" {self.reason!r}" if self.reason else ""
        return f"{self.code}{name}{reason}"


def may_be_sent(code: int) -> bool:
    """Whether RFC 6455 section 7.4 allows the code in a close frame."""
    return code in _SENDABLE or 3000 <= code <= 4999


def check_close(code: int, reason: str) -> Close:
    """
    Return the close frame's content if an endpoint may send it.

    Raises ``ValueError`` for a code that RFC 6455 section 7.4 does not allow in a close frame, and for a
    reason of more than 123 bytes in UTF-8 (or one that UTF-8 cannot encode); ``TypeError`` for wrong types.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"close code must be an int, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"close reason must be a str, not {reason!r}")
    if not may_be_sent(code):
        raise ValueError(
            f"close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4)"
        )
    size = len(reason.encode())
    if size > MAX_REASON_BYTES:
        raise ValueError(f"close reason is {size} bytes in UTF-8, {MAX_REASON_BYTES} at most: {reason!r}")
    return Close(code, reason)


def shorten(reason: str) -> str:
    """Return as much of the beginning of a close reason as a close frame holds."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
