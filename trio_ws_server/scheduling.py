"""
What the connection's tasks need of Trio's scheduler: waiting for a change, giving way, and serving tasks.

The one module that parks tasks by `trio.lowlevel`. A `trio.Event` is made anew for each time that it is waited for;
`Changes` stays, and waking a task costs one `reschedule`. That is right as long as every wait stands in a loop that
looks at what it waits for again, since a wake-up says only that something has changed; and as long as a task is
taken from those who wait before it is rescheduled, which must not be done twice, or when its wait is cancelled.
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

CALLS_BETWEEN_YIELDS = 32
"""A checkpoint costs ten times what taking a message from an inbox does: calls that need not wait share one."""


class Changes:
    """Where tasks, a few at a time and most of the time one at most, wait for something to change."""

    # A connection has several of these: for one waiting task, none makes a list or a closure.
    __slots__ = ("_first", "_others")

    def __init__(self) -> None:
        self._first: trio.lowlevel.Task | None = None
        self._others: list[trio.lowlevel.Task] | None = None

    def announce(self) -> None:
        """Wake every waiting task."""
        if self._first is not None:
            first, self._first = self._first, None
            trio.lowlevel.reschedule(first)
        if self._others is not None:
            others, self._others = self._others, None
            for task in others:
                trio.lowlevel.reschedule(task)

    def next(self) -> Awaitable[object]:
        """Wait for the next change, when awaited, as must be done at once; a checkpoint in every case."""
        task = trio.lowlevel.current_task()
        if self._first is None:
            self._first = task
            return trio.lowlevel.wait_task_rescheduled(self._give_up_first)  # noqa: ASYNC105 (for the caller)
        return self._next_beside_first(task)

    def _give_up_first(self, _: object) -> trio.lowlevel.Abort:
        self._first = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _next_beside_first(self, task: trio.lowlevel.Task) -> Awaitable[object]:
        if self._others is None:
            self._others = []
        others = self._others

        def give_up(_: object) -> trio.lowlevel.Abort:
            others.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        others.append(task)
        return trio.lowlevel.wait_task_rescheduled(give_up)  # noqa: ASYNC105 (for the caller to await)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true; return at once, without a checkpoint, if it is already."""
        while not condition():
            await self.next()


_checkpoint = trio.lowlevel.checkpoint
# What a call does that need not wait. To take the next of these costs half of what counting does.
TURNS = itertools.cycle([*[trio.lowlevel.checkpoint_if_cancelled] * (CALLS_BETWEEN_YIELDS - 1), _checkpoint])


def pace() -> Awaitable[None]:
    """
    Raise ``Cancelled``, when awaited, if the caller is cancelled, and yield at every 32nd call.

    Public async functions begin with it, so that a task which never has to wait gives way to others all the
    same, and so that cancelling one at once leaves nothing half done. One count serves all connections: a task
    that sends one message to each of many is to give way too.
    """
    return next(TURNS)()


async def give_way() -> None:
    """
    Yield at every 32nd call, which can raise ``Cancelled``, and otherwise do nothing, cancelled or not.

    For a function that returns what is there already even to a caller that is cancelled: Starlette and FastAPI
    ask whether a client has left by calling ``receive()`` in a cancelled scope.
    """
    if next(TURNS) is _checkpoint:
        await _checkpoint()


@asynccontextmanager
async def serving_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """
    Open a nursery for tasks that serve the body of the ``async with`` and are cancelled when it ends.

    What the body raises comes out as it is, not in an exception group; a group comes out only where a serving
    task failed too.
    """
    failure: BaseException | None = None
    failures: tuple[BaseException, ...] = ()
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = group.exceptions
        if failure is None or isinstance(failure, trio.Cancelled) or len(failures) > 1:
            raise
    # Outside of the handler, so that it keeps the context that it was raised in. It is what the body raised; of
    # a group, what is left once the nursery has taken its own Cancelled out.
    if failures:
        raise failures[0]
