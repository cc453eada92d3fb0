"""
Which origins and hosts are allowed: what the patterns of ``allowed_origins`` and ``allowed_hosts`` match.

In a pattern ``*`` stands for one or more characters of a host's name (letters, digits, hyphens, dots) or, as a
port, for one or more digits, and so never for what would take another part of an origin into it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = "[a-z0-9.-]+"
_DIGITS = "[0-9]+"
_PORT = re.compile(r":([0-9]+|\*)\Z")
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def origin_allowed(origins: Sequence[bytes], patterns: tuple[str, ...]) -> bool:
    """
    Whether a request with these values of its Origin fields, none or more, comes from where one may.

    Origins are compared by scheme, host and port, each scheme's default port included, without regard to case
    (RFC 6454 sections 4 and 5). ``null``, the origin of documents that are to have none, and "", no Origin at all,
    are allowed only where they are among the patterns. Without patterns everything is.
    """
    if not patterns:
        return True
    match origins:
        case []:
            return "" in patterns
        case [b"null"]:
            return "null" in patterns
        case [origin]:
            full = _with_port(origin.decode("latin-1").lower())
            return any(pattern.fullmatch(full) for pattern in _origins(patterns))
        case _:
            return False


def host_allowed(hosts: Sequence[bytes], patterns: tuple[str, ...]) -> bool:
    """
    Whether a request with these values of its Host field, none or one, is for a host that is served.

    Case does not matter, nor does a dot at the end of the name, nor the port where the pattern has none. A host
    without a port is on that of its scheme, which is 80 or 443. Without patterns every request is for one.
    """
    if not patterns:
        return True
    host = b"".join(hosts).decode("latin-1").lower().removesuffix(":")
    return any(pattern.fullmatch(host) for pattern in _hosts(patterns))


def _with_port(origin: str) -> str:
    """Return the origin, or pattern of origins, with the port that its scheme stands for."""
    port = _DEFAULT_PORTS.get(origin.partition("://")[0])
    return origin if port is None or _PORT.search(origin) else f"{origin}:{port}"


@cache
def _origins(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [re.compile(_origin(_with_port(pattern.lower()))) for pattern in patterns if "://" in pattern]


def _origin(pattern: str) -> str:
    return _name(pattern[:-1]) + _DIGITS if pattern.endswith(":*") else _name(pattern)


@cache
def _hosts(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [re.compile(_host(pattern.lower())) for pattern in patterns]


def _host(pattern: str) -> str:
    port = _PORT.search(pattern)
    digits = _DIGITS if port is None or port[1] == "*" else port[1]
    optional = "?" if digits in (_DIGITS, *_DEFAULT_PORTS.values()) else ""
    name = _PORT.sub("", pattern).removesuffix(".")
    return rf"{_name(name)}\.?(:{digits}){optional}"


def _name(pattern: str) -> str:
    """Return the regular expression for what holds a name and no port that is to be any."""
    first, *others = map(re.escape, pattern.split("*"))
    if not others:
        return first
    # Atomic: what stands between two asterisks is looked for once, from left to right, for else a name could be
    # made that takes for ever to be found not to match.
    between = "".join(f"(?>{_NAME}?{part})" for part in others[:-1])
    return f"{first}{between}{_NAME}{others[-1]}"
