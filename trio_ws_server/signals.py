"""Signals that end the server, and an end that comes even where the server cannot see to it itself."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.logs import logger
from trio_ws_server.server import LIFESPAN_GRACE

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from trio_ws_server.server import Server

_CLOSE_FOR = {signal.SIGTERM: Close(CloseCode.SERVICE_RESTART), signal.SIGINT: Close(CloseCode.GOING_AWAY)}

CANCELLATION_GRACE = 3.0
"""Seconds that applications have to end when cancelled. One that does not is ended with the process."""


@contextmanager
def shut_down_on_signals(server: Server, graceful_timeout: float) -> Generator[None, None, None]:
    """
    Shut the server down at the first SIGTERM or SIGINT, cancel everything at the second.

    An application may shield itself from cancellation, or hold up the whole process in a call that blocks. So
    each signal also sets a deadline outside of Trio and of Python's interpreter lock, after which the process
    writes to standard error where every thread is and exits with status 1. In another thread than the main one
    Python has no signals to give, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    token = trio.lowlevel.current_trio_token()
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            exit_after(graceful_timeout + LIFESPAN_GRACE + CANCELLATION_GRACE + server.cancellation_time)
            token.run_sync_soon(_shut_down, server, signal.Signals(number))
        elif seen == 2:  # further ones must not put the deadline off
            exit_after(CANCELLATION_GRACE + server.cancellation_time)
            token.run_sync_soon(_cancel, server)

    previous = {number: signal.signal(number, handle) for number in _CLOSE_FOR}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if seen:
            faulthandler.cancel_dump_traceback_later()


def exit_after(seconds: float) -> None:
    """End the process, whatever it does then, with status 1 and a word on where it was; the last call counts."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)


def _shut_down(server: Server, number: signal.Signals) -> None:
    logger.info("%s: shutting down, in %g s at the most", number.name, server.graceful_timeout)
    server.shut_down(_CLOSE_FOR[number])


def _cancel(server: Server) -> None:
    logger.warning("Second signal: cancelling everything")
    server.cancel()
