"""The two sides of a transport: what a connection calls, and what it is called with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, Self

import trio

from trio_ws_server.scheduling import Changes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from trio_ws_server.config import Config
    from trio_ws_server.transport.engine import Engine
    from trio_ws_server.transport.timers import Timer

FORCED_CLOSE_TIMEOUT = 1.0
"""Seconds for a connection's tasks to end once it is dropped, which takes none: a bound for strange streams."""


LOOKS_PER_TIMEOUT = 4
"""How often it is seen what a peer has taken: when it last took some is known as exactly as that."""


class Receiver(Protocol):
    """
    What a transport tells a connection. Must not block or raise.

    Called from the transport's own tasks; `connection_lost`, as well, from where the connection is dropped.
    After `eof_received` or `connection_lost` comes no more data; after `connection_lost` comes nothing.
    """

    def data_received(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer: of a ``memoryview``, which has others once this returns, copy what is kept."""

    def eof_received(self) -> None:
        """Take note that the peer ended its side; ours can still be written to."""

    def writable_again(self) -> None:
        """Take note that the write buffer, having been above its high-water mark, fell to its low-water mark."""

    def connection_lost(self) -> None:
        """Take note that the connection is gone in both directions."""


class _Nobody:
    """Who is told of what arrives as long as there is no connection."""

    def data_received(self, data: bytes | memoryview) -> None: ...

    def eof_received(self) -> None: ...

    def writable_again(self) -> None: ...

    def connection_lost(self) -> None: ...


_NOBODY = _Nobody()


class Transport(ABC):
    """
    Bytes to and from one peer, for the length of an ``async with``, at the end of which the connection is closed.

    `write` never waits and takes all it is given; who writes much calls `drain`, which waits while the buffer is
    too full. So cancelling a sender can never cut what it has written.

    What a connection has to do in time, or beside what its application does, is done for it here as well, and ends
    with it: `call_at` and `start_soon`. An error there, or in a `receiver`, cancels the block and comes out of it.
    """

    # A dict of 30 attributes or more is not shared: it would take 1.3 KiB more of each connection.
    __slots__ = (
        "_changes",
        "_config",
        "_ending",
        "_engine",
        "_failure",
        "_kept",
        "_peer_ended",
        "_released",
        "_scope",
        "_side_ended",
        "_tasks",
        "_timers",
        "_unsent",
        "congested",
        "lost",
        "received_at",
        "receiver",
        "taken",
        "taken_at",
        "timers",
    )

    def __init__(self, config: Config, engine: Engine) -> None:
        self.receiver: Receiver = _NOBODY
        """Who is told of what arrives; a connection sets itself here, and hands over by setting another."""
        self.lost = False
        """Whether the connection is gone: nothing written now has an effect."""
        self.congested = False
        """Whether the write buffer went above its high-water mark and has not yet come down to its low one."""
        self.received_at = trio.current_time()
        """When something last came from the peer, in seconds of `trio.current_time`."""
        self.taken = 0
        """Bytes that the network has taken of those `written`, as far as was seen (`see_taken`)."""
        self.taken_at = -math.inf
        """When it was last seen to take some. What we send is none of that, as long as a kernel had room for it."""
        self.timers = engine.timers
        """For waits with a deadline. What is to be called only while the connection is there is for `call_at`."""
        self._kept = 0
        self._unsent = 0
        self._released = False
        self._ending = False
        self._side_ended = False
        self._peer_ended = False
        self._config = config
        self._engine = engine
        self._changes = Changes()
        # Most of the time there is none of these, and one of those: tuples take the least memory then.
        self._tasks: tuple[trio.CancelScope, ...] = ()
        self._timers: tuple[Timer, ...] = ()
        self._failure: Exception | None = None
        self._scope = trio.CancelScope()

    async def __aenter__(self) -> Self:
        """Begin to read. The `receiver` must be set before the next checkpoint."""
        self._scope.__enter__()
        self._guarded(self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Drop the connection, if it is not closed yet, and wait until nothing of it is left."""
        try:
            self.abort()
            if self._tasks:
                with trio.move_on_after(FORCED_CLOSE_TIMEOUT, shield=True):
                    await self._changes.until(lambda: not self._tasks)
        except Exception as second:
            self._failed_with(second)
        finally:
            # Each refers to the other: without this, both would be left to the garbage collector.
            self.receiver = _NOBODY
            try:
                handled = bool(self._scope.__exit__(kind, error, traceback))
            except BaseExceptionGroup as rest:
                # What a group has beside the Cancelled that the scope keeps for itself.
                if self._failure is None:
                    raise
                error, handled = rest, False
        if self._failure is None:
            return handled
        if error is None or handled:
            raise self._failure
        raise BaseExceptionGroup("a connection failed in two ways", [self._failure, error])

    @property
    def written(self) -> int:
        """Bytes of which `taken` tells how many the network has taken."""
        return self.taken + self._kept + self._unsent

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send ``data``, or keep it until the network takes it; without effect after `end`, or a loss."""

    @abstractmethod
    def write_soon(self, data: bytes) -> None:
        """
        Do as `write` does, but together with what is written next.

        That is when there is much of it, or at `push`, or when all tasks that can run have run.
        """

    @abstractmethod
    def push(self) -> None:
        """Send what `write_soon` has kept."""

    async def drain(self) -> None:
        """
        Wait while the transport is `congested`; return at once, without a checkpoint, where it is not.

        Returns as well when the connection is lost. Cancelling it leaves what was written to be sent.
        """
        await self._changes.until(lambda: not self.congested)

    @abstractmethod
    def look(self) -> None:
        """
        Take what has come by now, before it is held against the peer that nothing has.

        See what it has taken as well, as `see_taken` does.
        """

    @abstractmethod
    def see_taken(self) -> None:
        """
        See how much of what was written the network has taken by now.

        When it did is not known: now, as far as `taken_at` can tell. Who judges by that looks a few times before.
        """

    def call_by(self, deadline: float, timeout: float, callback: Callable[[], None]) -> Timer:
        """
        Call a function at a deadline that moves with `taken_at`, by ``timeout`` seconds.

        Earlier as long as something is left to be taken, to see when that is: see `LOOKS_PER_TIMEOUT`.
        """
        if self.taken < self.written:
            deadline = min(deadline, trio.current_time() + timeout / LOOKS_PER_TIMEOUT)
        return self.call_at(deadline, callback)

    @abstractmethod
    def pause_reading(self) -> None:
        """Take no more bytes from the network. A piece that is on its way in may still arrive."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""

    @abstractmethod
    def end(self) -> None:
        """
        Send what is buffered, end our side, drop what still arrives until the peer ends its side, and close.

        Closing a socket that holds unread data resets the connection, and the reset can destroy our last bytes
        before the peer has read them (RFC 9112 section 9.6); so the peer's end is waited for. How long, is for the
        caller to say, by `abort`. Without effect on a connection that is being ended, or is lost.
        """

    async def shutdown(self, linger: float) -> None:
        """
        Do as `end` does, and wait for it; for the peer's end, once our side is ended, at most ``linger`` seconds.

        Cancelling it closes the connection at once.
        """
        try:
            self.end()
            await self._changes.until(lambda: self._side_ended or self.lost)
            if linger > 0:
                deadline = trio.current_time() + linger
                await self.timers.in_time(self._changes, lambda: self.lost, deadline)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the connection now, with whatever is in its buffers."""
        if not self.lost:
            self.lost = True
            self.taken = self.written
            self._kept = self._unsent = 0
            self.congested = False
            # Whatever goes wrong from here on, nobody is to wait for what does not come any more.
            self._changes.announce()
            try:
                self._release()
            finally:
                self.receiver.connection_lost()
        elif not self._released:
            self._release()

    def call_at(self, time: float, callback: Callable[[], None]) -> Timer:
        """Call a function at a time, in seconds of `trio.current_time`, if the connection is still there."""
        timer = self.timers.call_at(time, callback, owner=self)
        if self.lost:
            timer.cancel()
        else:
            self._timers += (timer,)
        return timer

    def timer_is_due(self, timer: Timer, callback: Callable[[], None]) -> None:
        """Call the function of a timer made by `call_at`."""
        self._timers = tuple(other for other in self._timers if other is not timer)
        self._guarded(callback)

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a task, which is cancelled when the connection is lost."""
        scope = trio.CancelScope()
        self._tasks += (scope,)
        self._engine.nursery.start_soon(self._run, function, scope)

    def fail(self, error: Exception) -> None:
        """Drop the connection because of an error that nobody foresaw, and let it come out of the block."""
        self._failed_with(error)
        self._scope.cancel()
        try:
            self.abort()
        except Exception as second:
            self._failed_with(second)

    # How.

    def _release(self) -> None:
        for scope in self._tasks:
            scope.cancel()
        for timer in self._timers:
            timer.cancel()
        self._timers = ()
        self._close()
        self._released = True

    @abstractmethod
    def _begin(self) -> None:
        """Begin to read."""

    @abstractmethod
    def _close(self) -> None:
        """Close what is below, and drop what is buffered."""

    def _our_side_has_ended(self) -> None:
        self._side_ended = True
        self._changes.announce()
        if self._peer_ended:
            self.abort()

    def _peers_side_has_ended(self) -> None:
        self._peer_ended = True
        self.receiver.eof_received()
        if self._side_ended:
            self.abort()

    def _look_at_high_water(self) -> None:
        if self._unsent > self._config.write_high_water:
            self.congested = True

    def _tell_of_room(self) -> None:
        """Tell who waits for it that the network has taken some."""
        self._changes.announce()
        if self.congested and self._unsent <= self._config.write_low_water:
            self.congested = False
            self.receiver.writable_again()

    async def _run(self, function: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            with scope:
                await function()
        except Exception as error:
            self.fail(error)
        finally:
            self._tasks = tuple(other for other in self._tasks if other is not scope)
            self._changes.announce()

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self.fail(error)

    def _failed_with(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        else:
            self._failure = ExceptionGroup("a connection failed in two ways", [self._failure, error])
