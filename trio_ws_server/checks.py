"""
What the values of settings may be: each check raises ``ValueError`` with what is wrong, and the value.

The message goes on from the setting's name: "must be ...".
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from trio_ws_server.headers import RESERVED_FIELDS, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

# RFC 9110 section 5.5.
_VALUE = re.compile(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_AUTHORITY = r"([\w.*-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]+|\*))?"
_HOST = re.compile(_AUTHORITY, re.ASCII)
# RFC 6454 section 6.2
_ORIGIN = re.compile(rf"(null|[A-Za-z][A-Za-z0-9+.-]*://{_AUTHORITY})?", re.ASCII)

LONGEST_TIME = 1e9
"""Seconds, some thirty years: more could overflow what the system counts time with."""

LARGEST_BACKLOG = 2**31 - 1
"""listen(2) takes a C int."""


def seconds(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"must be a number of seconds above 0, not {value!r}")
    if value > LONGEST_TIME:
        raise ValueError(f"must be {LONGEST_TIME:.0f} seconds at most, not {value!r}")


def seconds_or_zero(value: object) -> None:
    if value != 0 or isinstance(value, bool):
        seconds(value)


def seconds_or_none(value: object) -> None:
    if value is not None:
        seconds(value)


def count(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number above 0, not {value!r}")


def count_or_zero(value: object) -> None:
    if value != 0 or isinstance(value, bool):
        count(value)


def count_or_none(value: object) -> None:
    if value is not None:
        count(value)


def between(least: int, most: int) -> Callable[[object], None]:
    def check(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, not {value!r}")

    return check


def backlog(value: object) -> None:
    count(value)
    if isinstance(value, int) and value > LARGEST_BACKLOG:
        raise ValueError(f"must be {LARGEST_BACKLOG} at most, not {value!r}")


def origins(value: object) -> None:
    _patterns(
        value, _ORIGIN, 'origins such as "https://example.com" or "https://*.example.com", "null", or ""'
    )


def hosts(value: object) -> None:
    _patterns(value, _HOST, 'hosts such as "example.com", "*.example.com" or "example.com:8000"')


def _patterns(value: object, allowed: re.Pattern[str], what: str) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"must be a tuple of {what}, not {value!r}")
    for pattern in value:
        if not isinstance(pattern, str) or not allowed.fullmatch(pattern):
            raise ValueError(f"must hold {what}, not {pattern!r}")


def flag(value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")


def path_prefix(value: object) -> None:
    if not isinstance(value, str) or (value and not value.startswith("/")) or value.endswith("/"):
        raise ValueError(f'must be empty or start with "/" and not end with it, not {value!r}')


def header_fields(value: object) -> None:
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
