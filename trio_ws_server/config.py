"""
Every limit and timeout, with its default, its unit and the precedent that the default follows.

Times are in seconds, sizes in bytes. A `Config` is validated once, when it is made; what reads it need not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from trio_ws_server import checks
from trio_ws_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

KIB = 1024
MIB = 1024 * KIB


def _setting(
    default: Any,
    group: str,
    option: str,
    check: Callable[[object], None],
    help_: str,
    *,
    kind: type | None = None,
) -> Any:
    """
    Declare a setting: its default; its group and name on the command line; what its value must be; its meaning.

    The check raises ``ValueError``. What None turns off, 0 does on the command line. ``kind`` is the type of what
    the option takes, where that is not the default's.
    """
    metadata = {
        "group": group,
        "option": option,
        "check": check,
        "help": help_,
        "kind": kind or type(default),
        "zero_is_none": check in (checks.seconds_or_none, checks.count_or_none),
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
        16 * MIB,
        "WebSocket",
        "ws-max-message-size",
        checks.count,
        "Largest message taken from a peer, in bytes.",
    )
    # more than a message of the largest size has in pieces of 128 bytes
    max_message_fragments: int = _setting(
        128 * KIB,
        "WebSocket",
        "ws-max-message-fragments",
        checks.count,
        "Most fragments of one message from a peer.",
    )
    # off as in Node's ws and uWebSockets: compression costs memory per connection, and CPU
    per_message_deflate: bool = _setting(
        False,
        "WebSocket",
        "ws-per-message-deflate",
        checks.flag,
        "Compress messages (permessage-deflate, RFC 7692).",
    )
    # zlib
    deflate_level: int = _setting(
        6,
        "WebSocket",
        "ws-deflate-level",
        checks.between(0, 9),
        "Compression level, from 0 (none) to 9 (smallest).",
    )
    # websockets: with 12 bits of window, 32 KiB for a connection's compressor where zlib's own take 256 KiB
    deflate_mem_level: int = _setting(
        5,
        "WebSocket",
        "ws-deflate-mem-level",
        checks.between(1, 9),
        "Memory level of the compressor, from 1 to 9.",
    )
    # zlib inflates with a window of 8 bits, but does not compress with one
    deflate_window_bits: int = _setting(
        12,
        "WebSocket",
        "ws-deflate-window-bits",
        checks.between(9, 15),
        "Largest window of either compressor, as a power of 2 in bytes, from 9 to 15.",
    )
    # under that, less is saved than the headers of one packet take
    deflate_min_size: int = _setting(
        64,
        "WebSocket",
        "ws-deflate-min-size",
        checks.count_or_zero,
        "Size of a message, in bytes, below which it goes uncompressed.",
    )
    deflate_server_no_context_takeover: bool = _setting(
        False,
        "WebSocket",
        "ws-deflate-server-no-context-takeover",
        checks.flag,
        "Compress each message of the server by itself: no memory between messages, but larger messages.",
    )
    deflate_client_no_context_takeover: bool = _setting(
        False,
        "WebSocket",
        "ws-deflate-client-no-context-takeover",
        checks.flag,
        "Have the client compress each message by itself.",
    )
    # websockets, uvicorn
    ping_interval: float | None = _setting(
        20.0,
        "WebSocket",
        "ws-ping-interval",
        checks.seconds_or_none,
        "Seconds between keepalive pings, at which a compressor not used since the last is let go of; 0: no pings.",
    )
    # websockets, uvicorn
    ping_timeout: float | None = _setting(
        20.0,
        "WebSocket",
        "ws-ping-timeout",
        checks.seconds_or_none,
        "Seconds that a peer may leave a ping unanswered; 0: for ever.",
    )
    # websockets
    close_timeout: float = _setting(
        10.0,
        "WebSocket",
        "ws-close-timeout",
        checks.seconds,
        "Seconds that a peer may take for its part of the closing handshake.",
    )
    # websockets max_queue, counted in bytes too, so that large messages do not multiply
    inbox_bytes: int = _setting(
        256 * KIB,
        "WebSocket",
        "ws-inbox-bytes",
        checks.count,
        "Bytes of unread messages at which reading pauses.",
    )
    inbox_messages: int = _setting(
        64, "WebSocket", "ws-inbox-messages", checks.count, "Unread messages at which reading pauses."
    )
    limit_message_rate: int | None = _setting(
        None,
        "WebSocket",
        "limit-message-rate",
        checks.count_or_none,
        "Most messages (of any number of fragments) and control frames a second from one connection, over which "
        "it is closed with 1008; 0: no limit.",
        kind=int,
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        "WebSocket",
        "allowed-origin",
        checks.origins,
        'Origin whose pages may connect, as "https://example.com" or "https://*.example.com"; others get 403. '
        '"": clients that send no origin, which are no browsers. Repeatable; without it, all may.',
        kind=str,
    )
    # uvicorn h11_max_incomplete_event_size
    max_head_size: int = _setting(
        64 * KIB, "HTTP", "max-head-size", checks.count, "Largest request line and header fields, in bytes."
    )
    # gunicorn limit_request_fields
    max_header_fields: int = _setting(
        100, "HTTP", "max-header-fields", checks.count, "Most header fields of a request."
    )
    # nginx client_body_timeout
    body_timeout: float = _setting(
        60.0,
        "HTTP",
        "body-timeout",
        checks.seconds,
        "Seconds in which a client must send 1 KiB more of a request's body, or its end, when it is waited for.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "HTTP",
        "allowed-host",
        checks.hosts,
        'Host that requests may be for, as "example.com" or "*.example.com"; others get 421. Repeatable; '
        "without it, all may.",
        kind=str,
    )
    # websockets open_timeout
    handshake_timeout: float = _setting(
        10.0,
        "Connections",
        "handshake-timeout",
        checks.seconds,
        "Seconds for a TLS handshake, for the first byte, and from it to a complete request head.",
    )
    # uvicorn timeout_keep_alive
    keep_alive_timeout: float = _setting(
        5.0,
        "HTTP",
        "keep-alive-timeout",
        checks.seconds,
        "Seconds that a connection may idle between requests.",
    )
    # uvicorn limit_concurrency
    limit_connections: int | None = _setting(
        None,
        "Connections",
        "limit-connections",
        checks.count_or_none,
        "Most connections at a time, over which clients get 503; 0: no limit.",
        kind=int,
    )
    # nginx limit_conn
    limit_connections_per_ip: int | None = _setting(
        None,
        "Connections",
        "limit-connections-per-ip",
        checks.count_or_none,
        "Most connections at a time from one client address, over which it gets 503; 0: no limit.",
        kind=int,
    )
    # Go http.Server.WriteTimeout practice
    write_timeout: float = _setting(
        30.0,
        "Connections",
        "write-timeout",
        checks.seconds,
        "Seconds without a byte taken, after which a peer is dropped.",
    )
    # asyncio transports
    write_high_water: int = _setting(
        64 * KIB,
        "Connections",
        "write-high-water",
        checks.count,
        "Bytes of unsent data at which senders wait.",
    )
    write_low_water: int = _setting(
        16 * KIB,
        "Connections",
        "write-low-water",
        checks.count,
        "Bytes of unsent data at which waiting senders go on.",
    )
    # gunicorn
    graceful_timeout: float = _setting(
        30.0,
        "Connections",
        "graceful-timeout",
        checks.seconds_or_zero,
        "Seconds from the signal to the end: what still runs then is cancelled.",
    )
    graceful_jitter: float = _setting(
        0.0,
        "Connections",
        "graceful-jitter",
        checks.seconds_or_zero,
        "Seconds after the signal over which WebSocket connections are closed, so that their clients do not "
        "come back all at once.",
    )
    # uvicorn
    backlog: int = _setting(
        2048, "Address", "backlog", checks.backlog, "Connections that may wait to be accepted."
    )
    root_path: str = _setting(
        "", "HTTP", "root-path", checks.path_prefix, "Path under which the app is mounted (ASGI root_path)."
    )
    server_header: bool = _setting(True, "HTTP", "server-header", checks.flag, "Send a Server header.")
    date_header: bool = _setting(True, "HTTP", "date-header", checks.flag, "Send a Date header.")
    response_headers: tuple[tuple[bytes, bytes], ...] = _setting(
        (),
        "HTTP",
        "header",
        checks.header_fields,
        'Header added to every HTTP response, as "Name: value". Repeatable.',
        kind=bytes,
    )
    access_log: bool = _setting(
        True, "Logs", "access-log", checks.flag, "Log every request and WebSocket connection."
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
        if self.graceful_jitter > self.graceful_timeout:
            raise ConfigError(
                f"graceful_jitter (--graceful-jitter) must not be above graceful_timeout (--graceful-timeout): "
                f"{self.graceful_jitter:g} is above {self.graceful_timeout:g}"
            )


def check_names(options: Mapping[str, object], known: Collection[str]) -> None:
    """Raise ``TypeError`` for an option that there is not, naming those that there are."""
    if unknown := options.keys() - set(known):
        raise TypeError(f"unknown option {min(unknown)!r}; there are {', '.join(sorted(known))}")


class Options(TypedDict, total=False):
    """The settings of `Config` as keyword arguments of `serve`, `run` and `connect`."""

    max_message_size: int
    max_message_fragments: int
    per_message_deflate: bool
    deflate_level: int
    deflate_mem_level: int
    deflate_window_bits: int
    deflate_min_size: int
    deflate_server_no_context_takeover: bool
    deflate_client_no_context_takeover: bool
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float
    inbox_bytes: int
    inbox_messages: int
    limit_message_rate: int | None
    allowed_origins: tuple[str, ...]
    max_head_size: int
    max_header_fields: int
    body_timeout: float
    allowed_hosts: tuple[str, ...]
    handshake_timeout: float
    keep_alive_timeout: float
    limit_connections: int | None
    limit_connections_per_ip: int | None
    write_timeout: float
    write_high_water: int
    write_low_water: int
    graceful_timeout: float
    graceful_jitter: float
    backlog: int
    root_path: str
    server_header: bool
    date_header: bool
    response_headers: tuple[tuple[bytes, bytes], ...]
    access_log: bool
