"""
The ASGI lifespan protocol 2.0.

The application's lifespan call runs in a task of its own for as long as the server does. An application that
raises or returns before it has answered ``lifespan.startup`` does not support the protocol: it is served all
the same, unless the protocol was demanded.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args

import trio

from trio_ws_server.app_errors import explain_if_asyncio, split
from trio_ws_server.asgi.events import optional, type_of, unexpected
from trio_ws_server.errors import InvalidEvent, LifespanError
from trio_ws_server.logs import logger
from trio_ws_server.scheduling import pace, serving_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from asgiref.typing import (
        ASGI3Application,
        LifespanScope,
        LifespanShutdownEvent,
        LifespanStartupEvent,
    )

LifespanMode = Literal["auto", "on", "off"]
LIFESPAN_MODES: tuple[LifespanMode, ...] = get_args(LifespanMode)


class _Phase(Enum):
    STARTING = "starting up"
    RUNNING = "between startup and shutdown"
    STOPPING = "shutting down"
    DONE = "shut down"
    FAILED = "reported as failed"
    UNSUPPORTED = "not supported by the application"


@asynccontextmanager
async def run_lifespan(
    app: ASGI3Application, mode: LifespanMode
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """
    Start the application up, yield its state for the body of the ``async with``, shut the application down.

    The state is None where the application has no lifespan. Waits for the application at both ends; cancelling
    it cancels the application's lifespan. Raises `LifespanError` if the application reports that its startup
    failed, or has no lifespan although the mode is "on".
    """
    if mode == "off":
        yield None
        return
    lifespan = _Lifespan(app, mode)
    async with serving_nursery() as nursery:
        nursery.start_soon(lifespan.run)
        await lifespan.startup()
        yield lifespan.state if lifespan.supported else None
        await lifespan.shutdown()


class _Lifespan:
    def __init__(self, app: ASGI3Application, mode: LifespanMode) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._phase = _Phase.STARTING
        self._failure: str | None = None
        self._started = trio.Event()
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self._startup_delivered = False

    @property
    def supported(self) -> bool:
        return self._phase is not _Phase.UNSUPPORTED

    async def startup(self) -> None:
        """Wait until the application has started, or turned out to have no lifespan."""
        await self._started.wait()
        if self._failure is not None:
            raise LifespanError(self._failure)

    async def shutdown(self) -> None:
        """Tell the application to shut down, and wait until it has."""
        if self._phase is not _Phase.RUNNING:
            return
        self._phase = _Phase.STOPPING
        self._stopping.set()
        await self._stopped.wait()

    async def run(self) -> None:
        """Call the application, and make sense of how the call ends."""
        scope: LifespanScope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as raised:
            own, passed = split(raised)
            if own is not None:
                self._ended(own)
            if passed is not None:
                raise passed from None
        else:
            self._ended(None)

    def _ended(self, exc: BaseException | None) -> None:
        how = "returned" if exc is None else f"raised {exc!r}"
        match self._phase:
            case _Phase.STARTING if self._mode == "on" or isinstance(exc, SystemExit):
                self._failure = f"the application {how} before it answered lifespan.startup"
                logger.error("Lifespan: %s", self._failure, exc_info=exc)
            case _Phase.STARTING:
                # One that asked for the event may well have a lifespan, with a mistake in it.
                if self._startup_delivered and exc is not None:
                    logger.warning(
                        "Lifespan: the application raised %r on lifespan.startup", exc, exc_info=exc
                    )
                self._phase = _Phase.UNSUPPORTED
                logger.info("Lifespan: not supported by the application, which %s", how)
            case _Phase.FAILED:
                pass  # It was said, and why; frameworks raise what they have reported.
            case _ if exc is not None:
                logger.error("Lifespan: the application raised %r", exc, exc_info=exc)
        if exc is not None:
            explain_if_asyncio(exc)
        self._started.set()
        self._stopped.set()

    async def _receive(self) -> LifespanStartupEvent | LifespanShutdownEvent:
        if not self._startup_delivered:
            self._startup_delivered = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, event: Mapping[str, Any]) -> None:
        await pace()
        type_ = type_of(event)
        match self._phase, type_:
            case _Phase.STARTING, "lifespan.startup.complete":
                self._phase = _Phase.RUNNING
                self._started.set()
            case _Phase.STARTING, "lifespan.startup.failed":
                self._failure = _message(event)
                self._phase = _Phase.FAILED
                self._started.set()
            case _Phase.STOPPING, "lifespan.shutdown.complete":
                self._phase = _Phase.DONE
                self._stopped.set()
            case _Phase.STOPPING, "lifespan.shutdown.failed":
                logger.error("Lifespan: the application's shutdown failed: %s", _message(event))
                self._phase = _Phase.FAILED
                self._stopped.set()
            case _Phase.STARTING, _:
                raise unexpected(event, "lifespan.startup.complete", "lifespan.startup.failed")
            case _Phase.STOPPING, _:
                raise unexpected(event, "lifespan.shutdown.complete", "lifespan.shutdown.failed")
            case _:
                raise InvalidEvent(f"unexpected event {type_!r}, the lifespan is {self._phase.value}")


def _message(event: Mapping[str, Any]) -> str:
    return optional(event, "message", str, "") or f"{event['type']}, without a message"
