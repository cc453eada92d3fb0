"""What an application's events hold, checked: an error says which key of which event was wrong, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from trio_ws_server.close_codes import Close, CloseCode, check_close, shorten
from trio_ws_server.errors import InvalidEvent

T = TypeVar("T")


def type_of(event: object) -> str:
    """Return the event's type."""
    if not isinstance(event, Mapping):
        raise InvalidEvent(f"an event is a dict, not {event!r}")
    type_ = event.get("type")
    if not isinstance(type_, str):
        raise InvalidEvent(f"an event has a 'type', a str: {_shown(event)}")
    return type_


def unexpected(event: Mapping[str, Any], *expected: str) -> InvalidEvent:
    """Return the error for an event of an unknown type, or one whose time it is not."""
    return InvalidEvent(f"unexpected event {event['type']!r}, expected {' or '.join(map(repr, expected))}")


def optional(event: Mapping[str, Any], key: str, type_: type[T], default: T) -> T:
    """Return the value of a key that may be missing or None."""
    value = event.get(key)
    if value is None:
        return default
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is int):
        raise _wrong(event, key, f"{'an' if type_ is int else 'a'} {type_.__name__}")
    return value


def status_of(event: Mapping[str, Any]) -> int:
    """Return the status code of the final response that the event starts."""
    status = event.get("status")
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise _wrong(event, "status", "an int from 200 to 599")
    return int(status)


def headers_of(event: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the header fields, names in lower case."""
    headers = event.get("headers")
    if headers is None:
        return []
    fields = []
    if not isinstance(headers, Iterable):
        raise _wrong(event, "headers", "an iterable of [name, value] pairs of bytes")
    for field in headers:
        match list(field) if isinstance(field, Iterable) else field:
            case [bytes() as name, bytes() as value]:
                pass
            case _:
                raise InvalidEvent(
                    f"{event['type']}: a header is a [name, value] pair of bytes, not {field!r}"
                )
        for part in (name, value):
            if b"\r" in part or b"\n" in part or b"\0" in part:
                raise InvalidEvent(
                    f"{event['type']}: a header must not hold line breaks or NUL: {name!r}: {value!r}"
                )
        fields.append((name.lower(), value))
    return fields


def body_of(event: Mapping[str, Any]) -> bytes:
    """Return the event's part of a body."""
    body = event.get("body")
    if body is None:
        return b""
    if not isinstance(body, bytes | bytearray | memoryview):
        raise _wrong(event, "body", "bytes")
    return bytes(body)


def message_of(event: Mapping[str, Any]) -> str | bytes:
    """Return the message of a ``websocket.send`` event; whether it is Unicode text shows when it is encoded."""
    text, binary = event.get("text"), event.get("bytes")
    if binary is None and isinstance(text, str):
        return text
    if (text is None) == (binary is None):
        given = "both" if text is not None else "neither"
        raise InvalidEvent(f"{event['type']}: exactly one of 'text' and 'bytes' must be given, not {given}")
    if text is not None:
        raise _wrong(event, "text", "a str")
    if not isinstance(binary, bytes | bytearray | memoryview):
        raise _wrong(event, "bytes", "bytes")
    return bytes(binary)


def close_of(event: Mapping[str, Any]) -> Close:
    """Return the code and reason of a ``websocket.close`` event; of a long reason, what a close frame holds."""
    code = optional(event, "code", int, CloseCode.NORMAL_CLOSURE)
    reason = optional(event, "reason", str, "")
    try:
        reason.encode()
    except UnicodeEncodeError as exc:
        raise not_unicode(event, "reason", exc) from exc
    try:
        return check_close(code, shorten(reason))
    except ValueError as exc:
        raise InvalidEvent(f"{event['type']}: {exc}") from exc


def not_unicode(event: Mapping[str, Any], key: str, error: UnicodeEncodeError) -> InvalidEvent:
    """Return the error for text that UTF-8 cannot hold."""
    return InvalidEvent(f"{event['type']}: {key!r} is not Unicode text: {error}")


def _wrong(event: Mapping[str, Any], key: str, wanted: str) -> InvalidEvent:
    if key not in event:
        return InvalidEvent(f"{event['type']}: {key!r} is missing; it must be {wanted}")
    return InvalidEvent(f"{event['type']}: {key!r} must be {wanted}, not {_shown(event[key])}")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"
