"""Exceptions out of applications and handlers: what they mean, and what the log says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_ws_server.errors import ClientDisconnected, ConnectionClosed
from trio_ws_server.logs import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRAMEWORK_DISCONNECTS = frozenset({"ClientDisconnect", "WebSocketDisconnect"})
"""What Starlette, FastAPI and Litestar raise in place of our exceptions and events."""

_ASYNCIO_SIGNS = (
    "no running event loop",
    "no current event loop",
    "unrecognized yield message",
    "asyncio library",
)
"""In the messages of what asyncio raises without its loop, and of what Trio raises when given a Future."""


def report(exception: BaseException, request_line: str, *, client_gone: bool) -> bool:
    """
    Log what an application raised; return whether it counts as the application's failure.

    That the client has gone is none, whether the application let our exception pass or a framework's.
    """
    failures = [leaf for leaf in _leaves(exception) if not _is_disconnect(leaf, client_gone=client_gone)]
    if not failures:
        logger.debug("%s: the client disconnected: %r", request_line, exception)
        return False
    logger.error("%s: exception in the application", request_line, exc_info=exception)
    if any(_wants_asyncio(failure) for failure in failures):
        logger.error(
            "This server runs applications on Trio, where asyncio's functions do not work: use Trio's own, or a "
            "framework based on anyio (such as Starlette or FastAPI) and anyio's functions in its routes"
        )
    return True


def _leaves(exception: BaseException) -> Iterator[BaseException]:
    if isinstance(exception, BaseExceptionGroup):
        for inner in exception.exceptions:
            yield from _leaves(inner)
    else:
        yield exception


def _is_disconnect(exception: BaseException, *, client_gone: bool) -> bool:
    if isinstance(exception, ClientDisconnected | ConnectionClosed):
        return True
    return client_gone and type(exception).__name__ in _FRAMEWORK_DISCONNECTS


def _wants_asyncio(exception: BaseException | None) -> bool:
    while exception is not None:
        if any(sign in str(exception) for sign in _ASYNCIO_SIGNS):
            return True
        exception = exception.__cause__ or exception.__context__
    return False
