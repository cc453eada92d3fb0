"""
One task, and one epoll or kqueue, for all sockets of a server.

The descriptor of an epoll is readable while one of its sockets is ready: the task waits for that alone, and takes
in one go what all of them have. Sockets stay registered from one message to the next, and no task is woken but
those of applications.

Here, too, is what is done once in each pass of Trio's scheduler. An instrument is told when all tasks that could
run have run, right before Trio waits for events. What it does there must not make a task run, since Trio has
decided by then for how long to wait: it only writes to sockets, and leaves to the poller, as an event, whatever
comes of that. An error is the exception: `run_sync_soon` wakes Trio for it.
"""

from __future__ import annotations

import select
import selectors
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BUFFER_SIZE = 256 * 1024 + 64
"""
Bytes that are taken from a socket at a time: so many stay in a processor's cache until they are unmasked.

A payload of a round size, and a header before it, are not to take another turn for the last few bytes.
"""

EVENTS_PER_TURN = 256
"""Sockets that epoll names at most, before other tasks have their turn."""

READABLE, WRITABLE = 0x1, 0x4
"""As epoll has them. An error, or the end of both sides, has other bits, and is both."""


class Pollable(Protocol):
    """A transport, as the poller knows it."""

    def ready(self, events: int) -> None:
        """Do what these events, of `READABLE` and `WRITABLE`, allow."""

    def push(self) -> None:
        """Write what is held; must not make a task run."""

    def abort(self) -> None:
        """Drop the connection."""

    def fail(self, error: Exception) -> None:
        """End because of what one of these raised."""


class Selector(Protocol):
    """What tells which descriptors are ready."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while some are."""

    def register(self, fd: int, events: int) -> object:
        """Look at a descriptor from now on."""

    def modify(self, fd: int, events: int) -> object:
        """Look for other events."""

    def unregister(self, fd: int) -> object:
        """Look at a descriptor no more."""

    def ready(self) -> Iterable[tuple[int, int]]:
        """Return descriptors and their events, without waiting."""

    def close(self) -> None:
        """Give back the selector's own descriptor."""


class _Epoll:
    """`selectors.EpollSelector` makes an object of each event; here they stay numbers."""

    def __init__(self) -> None:
        epoll = select.epoll()
        self.fileno = epoll.fileno
        self.register = epoll.register
        self.modify = epoll.modify
        self.unregister = epoll.unregister
        self.close = epoll.close
        self._poll = epoll.poll

    def ready(self) -> list[tuple[int, int]]:
        return self._poll(0, EVENTS_PER_TURN)


class PortableSelector:
    """The standard library's, for a platform with kqueue."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self.unregister = selector.unregister
        self.close = selector.close

    def fileno(self) -> int:
        number: int = self._selector.fileno()  # type: ignore[attr-defined]
        return number

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, _portable(events))

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, _portable(events))

    def ready(self) -> Iterable[tuple[int, int]]:
        for key, events in self._selector.select(0):
            yield (
                key.fd,
                READABLE * bool(events & selectors.EVENT_READ)
                | WRITABLE * bool(events & selectors.EVENT_WRITE),
            )


def _portable(events: int) -> int:
    return selectors.EVENT_READ * bool(events & READABLE) | selectors.EVENT_WRITE * bool(events & WRITABLE)


def open_selector() -> Selector | None:
    """Return the best that the platform has, None where that has no descriptor to wait for."""
    if hasattr(select, "epoll"):
        return _Epoll()
    if hasattr(selectors, "KqueueSelector"):
        return PortableSelector(selectors.KqueueSelector())
    return None


class Poller(trio.abc.Instrument):
    """Tells transports when their sockets are ready, as long as `run` does."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._transports: dict[int, Pollable] = {}
        self._held: list[Pollable] = []
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        """What sockets are read into; what is to be kept must be copied before the next one is."""
        self.looked_at = 0.0
        """When it was last seen what is ready, in seconds of `trio.current_time`."""

    def add(self, fd: int, transport: Pollable) -> None:
        """Take up a socket: its transport says by `watch` what there is to look for, and in the end `forget`."""
        self._transports[fd] = transport

    def watch(self, fd: int, events: int, *, before: int) -> None:
        """Call the transport's ``ready`` whenever there are such events, in place of those ``before``."""
        if not before:
            self._selector.register(fd, events)
        elif events:
            self._selector.modify(fd, events)
        else:
            self._selector.unregister(fd)

    def forget(self, fd: int, *, before: int) -> None:
        """Know no more of a socket; to be called before it is closed."""
        self._transports.pop(fd, None)
        if before:
            self._selector.unregister(fd)

    def push_later(self, transport: Pollable) -> None:
        """Call ``transport.push`` at the end of this pass of the scheduler."""
        self._held.append(transport)

    async def run(self) -> NoReturn:
        """Look at what is ready, again and again; when this is cancelled, drop all connections."""
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                await trio.lowlevel.wait_readable(self._selector.fileno())
                ready = self._selector.ready()
                self.looked_at = trio.current_time()
                for fd, events in ready:
                    # One that another of this turn has closed is not there any more.
                    if (transport := self._transports.get(fd)) is not None:
                        try:
                            transport.ready(events)
                        except Exception as error:
                            transport.fail(error)
        finally:
            trio.lowlevel.remove_instrument(self)
            self._push_all()
            for transport in list(self._transports.values()):
                try:
                    transport.abort()
                except Exception as error:
                    transport.fail(error)

    def before_io_wait(self, timeout: float) -> None:
        """Push what is held: all tasks that could run have run."""
        self._push_all()

    def _push_all(self) -> None:
        if self._held:
            held, self._held = self._held, []
            for transport in held:
                try:
                    transport.push()
                except Exception as error:
                    trio.lowlevel.current_trio_token().run_sync_soon(transport.fail, error)


@contextmanager
def open_poller() -> Iterator[Poller | None]:
    """Make a poller for the length of the ``with``; None where the platform has no means for it."""
    selector = open_selector()
    if selector is None:
        yield None
        return
    try:
        yield Poller(selector)
    finally:
        selector.close()
