"""How fast a request's body must come."""

from __future__ import annotations

from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from trio_ws_server.protocol.http1 import BadRequest

if TYPE_CHECKING:
    from collections.abc import Generator

BODY_PROGRESS = 1024
"""Bytes of a request's body that must come within ``body_timeout`` seconds of waiting for them."""


class BodyPace:
    """Whether the client sends a request's body fast enough, as long as it is waited for."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waited = 0.0
        """Seconds, since the last `BODY_PROGRESS` bytes were there."""
        self._received = 0
        """Bytes, since then."""

    def received(self, size: int) -> None:
        """Take note of so many bytes of the body."""
        self._received += size
        if self._received >= BODY_PROGRESS:
            self._received = 0
            self._waited = 0.0

    @contextmanager
    def waiting(self) -> Generator[float, None, None]:
        """Count the time that the body of the ``with`` takes; yields when it will have been too much."""
        started = trio.current_time()
        try:
            yield started + max(0, self._timeout - self._waited)
        finally:
            # Of a wait that is cancelled, too: who waits for a little while again and again waits as well.
            self._waited += trio.current_time() - started

    def too_slow(self) -> BadRequest:
        """Return what is wrong with a body for which that time is over."""
        return BadRequest(
            f"less than {BODY_PROGRESS} bytes of the request's body arrived in {self._timeout:g} seconds",
            HTTPStatus.REQUEST_TIMEOUT,
        )
