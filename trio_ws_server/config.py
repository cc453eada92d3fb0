"""
Every limit and timeout, with its default, its unit and the precedent that the default follows.

Times are in seconds, sizes in bytes. A `Config` is validated once, when it is made; what reads it need not.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from trio_ws_server.errors import ConfigError
from trio_ws_server.headers import RESERVED_FIELDS, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

KIB = 1024
MIB = 1024 * KIB

# RFC 9110 section 5.5.
_VALUE = re.compile(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?")


LONGEST_TIME = 1e9
"""Seconds, some thirty years: more could overflow what the system counts time with."""

LARGEST_BACKLOG = 2**31 - 1
"""listen(2) takes a C int."""


def _seconds(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"must be a number of seconds above 0, not {value!r}")
    if value > LONGEST_TIME:
        raise ValueError(f"must be {LONGEST_TIME:.0f} seconds at most, not {value!r}")


def _seconds_or_zero(value: object) -> None:
    if value != 0 or isinstance(value, bool):
        _seconds(value)


def _seconds_or_none(value: object) -> None:
    if value is not None:
        _seconds(value)


def _count(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number above 0, not {value!r}")


def _backlog(value: object) -> None:
    _count(value)
    if isinstance(value, int) and value > LARGEST_BACKLOG:
        raise ValueError(f"must be {LARGEST_BACKLOG} at most, not {value!r}")


def _flag(value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")


def _path_prefix(value: object) -> None:
    if not isinstance(value, str) or (value and not value.startswith("/")) or value.endswith("/"):
        raise ValueError(f'must be empty or start with "/" and not end with it, not {value!r}')


def _header_fields(value: object) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"must be a tuple of (name, value) pairs of bytes, not {value!r}")
    for pair in value:
        match pair:
            case (bytes() as name, bytes() as content) if TOKEN.fullmatch(name) and _VALUE.fullmatch(content):
                if name.lower() in RESERVED_FIELDS:
                    raise ValueError(f"must not hold {name!r}: the server makes that field itself")
            case _:
                raise ValueError(
                    "must hold (name, value) pairs of bytes, a name without spaces or separators and a value "
                    f"without control characters, not {pair!r}"
                )


def _setting(default: Any, group: str, option: str, check: Callable[[object], None], help_: str) -> Any:
    """
    Declare a setting: its default; its group and name on the command line; what its value must be; its meaning.

    The check raises ``ValueError``. What None turns off, 0 does on the command line.
    """
    metadata = {
        "group": group,
        "option": option,
        "check": check,
        "help": help_,
        "zero_is_none": check is _seconds_or_none,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """
    How a server or a client treats its connections.

    Raises `ConfigError` for a value that a setting cannot have.
    """

    # uvicorn ws_max_size
    max_message_size: int = _setting(
        16 * MIB, "WebSocket", "ws-max-message-size", _count, "Largest message taken from a peer, in bytes."
    )
    # off as in Node's ws and uWebSockets: compression costs memory per connection, and CPU
    per_message_deflate: bool = _setting(
        False,
        "WebSocket",
        "ws-per-message-deflate",
        _flag,
        "Compress messages (permessage-deflate, RFC 7692).",
    )
    # websockets, uvicorn
    ping_interval: float | None = _setting(
        20.0,
        "WebSocket",
        "ws-ping-interval",
        _seconds_or_none,
        "Seconds between keepalive pings; 0: no pings.",
    )
    # websockets, uvicorn
    ping_timeout: float | None = _setting(
        20.0,
        "WebSocket",
        "ws-ping-timeout",
        _seconds_or_none,
        "Seconds that a peer may leave a ping unanswered; 0: for ever.",
    )
    # websockets
    close_timeout: float = _setting(
        10.0,
        "WebSocket",
        "ws-close-timeout",
        _seconds,
        "Seconds that a peer may take for its part of the closing handshake.",
    )
    # websockets max_queue, counted in bytes too, so that large messages do not multiply
    inbox_bytes: int = _setting(
        256 * KIB, "WebSocket", "ws-inbox-bytes", _count, "Bytes of unread messages at which reading pauses."
    )
    inbox_messages: int = _setting(
        64, "WebSocket", "ws-inbox-messages", _count, "Unread messages at which reading pauses."
    )
    # uvicorn h11_max_incomplete_event_size
    max_head_size: int = _setting(
        64 * KIB, "HTTP", "max-head-size", _count, "Largest request line and header fields, in bytes."
    )
    # websockets open_timeout
    handshake_timeout: float = _setting(
        10.0,
        "Connections",
        "handshake-timeout",
        _seconds,
        "Seconds for a TLS handshake, for the first byte, and from it to a complete request head.",
    )
    # uvicorn timeout_keep_alive
    keep_alive_timeout: float = _setting(
        5.0, "HTTP", "keep-alive-timeout", _seconds, "Seconds that a connection may idle between requests."
    )
    # Go http.Server.WriteTimeout practice
    write_timeout: float = _setting(
        30.0,
        "Connections",
        "write-timeout",
        _seconds,
        "Seconds without a byte taken, after which a peer is dropped.",
    )
    # asyncio transports
    write_high_water: int = _setting(
        64 * KIB, "Connections", "write-high-water", _count, "Bytes of unsent data at which senders wait."
    )
    write_low_water: int = _setting(
        16 * KIB,
        "Connections",
        "write-low-water",
        _count,
        "Bytes of unsent data at which waiting senders go on.",
    )
    # gunicorn
    graceful_timeout: float = _setting(
        30.0,
        "Connections",
        "graceful-timeout",
        _seconds_or_zero,
        "Seconds from the signal to the end: what still runs then is cancelled.",
    )
    # uvicorn
    backlog: int = _setting(2048, "Address", "backlog", _backlog, "Connections that may wait to be accepted.")
    root_path: str = _setting(
        "", "HTTP", "root-path", _path_prefix, "Path under which the app is mounted (ASGI root_path)."
    )
    server_header: bool = _setting(True, "HTTP", "server-header", _flag, "Send a Server header.")
    date_header: bool = _setting(True, "HTTP", "date-header", _flag, "Send a Date header.")
    response_headers: tuple[tuple[bytes, bytes], ...] = _setting(
        (),
        "HTTP",
        "header",
        _header_fields,
        'Header added to every HTTP response, as "Name: value". Repeatable.',
    )
    access_log: bool = _setting(
        True, "Logs", "access-log", _flag, "Log every request and WebSocket connection."
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            try:
                setting.metadata["check"](getattr(self, setting.name))
            except ValueError as exc:
                raise ConfigError(f"{setting.name} {exc}") from None
        if self.write_low_water > self.write_high_water:
            raise ConfigError(
                f"write_low_water (--write-low-water) must not be above write_high_water (--write-high-water): "
                f"{self.write_low_water} is above {self.write_high_water}"
            )


def check_names(options: Mapping[str, object], known: Collection[str]) -> None:
    """Raise ``TypeError`` for an option that there is not, naming those that there are."""
    if unknown := options.keys() - set(known):
        raise TypeError(f"unknown option {min(unknown)!r}; there are {', '.join(sorted(known))}")


class Options(TypedDict, total=False):
    """The settings of `Config` as keyword arguments of `serve`, `run` and `connect`."""

    max_message_size: int
    per_message_deflate: bool
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float
    inbox_bytes: int
    inbox_messages: int
    max_head_size: int
    handshake_timeout: float
    keep_alive_timeout: float
    write_timeout: float
    write_high_water: int
    write_low_water: int
    graceful_timeout: float
    backlog: int
    root_path: str
    server_header: bool
    date_header: bool
    response_headers: tuple[tuple[bytes, bytes], ...]
    access_log: bool
