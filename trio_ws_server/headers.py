"""HTTP header fields: as the native API shows them, and which are not for applications to set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What a field's name is, and much else (RFC 9110 section 5.6.2)."""

RESERVED_FIELDS = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields by which the two ends of a connection agree: in an opening handshake nobody else may set them."""


class Headers:
    """
    Header fields in the order in which they came, their names in lower case, duplicates kept.

    ``headers[name]`` and ``name in headers`` look a field up by its name in any case; values are decoded as
    Latin-1, so that every byte can be told. Otherwise they are a sequence of (name, value) pairs.
    """

    # Not a typing.Sequence by name: type checkers would then take every ``name in headers`` for a mistake.

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the fields as they came until somebody asks for one."""
        self._raw = raw
        self._decoded: list[tuple[str, str]] | None = None

    @property
    def _fields(self) -> list[tuple[str, str]]:
        if self._decoded is None:
            self._decoded = [
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self._raw
            ]
        return self._decoded

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of this name."""
        wanted = name.lower()
        return [value for field, value in self._fields if field == wanted]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first field of this name, else ``default``."""
        return next(iter(self.get_all(name)), default)

    @overload
    def __getitem__(self, key: str) -> str: ...

    @overload
    def __getitem__(self, key: int) -> tuple[str, str]: ...

    @overload
    def __getitem__(self, key: slice) -> list[tuple[str, str]]: ...

    def __getitem__(self, key: str | int | slice) -> str | tuple[str, str] | list[tuple[str, str]]:
        if not isinstance(key, str):
            return self._fields[key]
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return bool(self.get_all(key)) if isinstance(key, str) else key in self._fields

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"


class Request(NamedTuple):
    """The request of an opening handshake."""

    path: str
    """The request target as sent: path and query string, percent-encoded."""
    headers: Headers


class RequestHead(NamedTuple):
    """The head of a request, in bytes; h11's own takes several times as much memory."""

    method: bytes
    target: bytes
    http_version: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
