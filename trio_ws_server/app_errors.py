"""Exceptions out of applications and handlers: what they mean, and what the log says of them."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import trio

from trio_ws_server.errors import ClientDisconnected, ConnectionClosed
from trio_ws_server.logs import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRAMEWORK_DISCONNECTS = frozenset(
    {
        "ClientDisconnect",  # Starlette, FastAPI
        "ClientDisconnectedError",  # Quart
        "WebSocketDisconnect",  # Starlette, FastAPI, Litestar
        "WebSocketDisconnected",  # Starlette, FastAPI: at a second attempt
    }
)
"""What frameworks raise in place of our exceptions and events."""

_ASYNCIO_SIGNS = (
    "no running event loop",
    "no current event loop",
    "unrecognized yield message",
    "has no attribute 'create_future'",
    "asyncio library",
)
"""In the messages of what asyncio raises without its loop, and of what Trio raises when given a Future."""


def split(raised: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """
    Split what came out of an application into what it raised and what only passed through it.

    Only cancellation, Ctrl-C and the end of a coroutine that is thrown away pass: whatever else an application
    raises ends its connection alone.
    """
    passing = (trio.Cancelled, KeyboardInterrupt)
    if isinstance(raised, BaseExceptionGroup):
        passed, own = raised.split(passing)
        return own, passed
    # A coroutine that Trio runs is not being thrown away: the application has raised this itself.
    thrown_away = isinstance(raised, GeneratorExit) and not trio.lowlevel.in_trio_task()
    return (None, raised) if thrown_away or isinstance(raised, passing) else (raised, None)


def report(exception: BaseException, request_line: str, *, client_gone: bool) -> bool:
    """
    Log what an application raised; return whether it counts as the application's failure.

    That the client has gone is none, whether the application let our exception pass or a framework's.
    """
    if client_gone and all(map(_is_disconnect, _leaves(exception))):
        logger.debug("%s: the client disconnected: %r", request_line, exception)
        return False
    logger.error("%s: exception in the application", request_line, exc_info=exception)
    explain_if_asyncio(exception)
    return True


def explain_if_asyncio(exception: BaseException) -> None:
    """Log what to use instead, if the application failed because it needs asyncio."""
    if any(sign in text for text in _messages(exception) for sign in _ASYNCIO_SIGNS):
        logger.error(
            "This server runs applications on Trio, where asyncio's functions do not work: use Trio's own, or a "
            "framework based on anyio (such as Starlette or FastAPI) and anyio's functions in its routes"
        )


def _is_disconnect(exception: BaseException) -> bool:
    return (
        isinstance(exception, ClientDisconnected | ConnectionClosed)
        or type(exception).__name__ in _FRAMEWORK_DISCONNECTS
    )


def _leaves(exception: BaseException) -> Iterator[BaseException]:
    if isinstance(exception, BaseExceptionGroup):
        for inner in exception.exceptions:
            yield from _leaves(inner)
    else:
        yield exception


def _messages(exception: BaseException) -> Iterator[str]:
    """Yield the messages of the exception, of those in its groups and of those that they came of."""
    pending: list[BaseException | None] = [exception]
    seen = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Unlike str(), which is the exception's own code, this cannot raise.
        yield from traceback.format_exception_only(current)
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions
        pending.append(current.__cause__ if current.__suppress_context__ else current.__context__)
