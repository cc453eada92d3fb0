"""Functions are called at their times and in their order, whatever is added and cancelled meanwhile."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from trio_ws_server.scheduling import Changes
from trio_ws_server.transport.timers import CALLS_PER_TURN, Timer, Timers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


@asynccontextmanager
async def running() -> AsyncGenerator[Timers]:
    async with trio.open_nursery() as nursery:
        timers = Timers()
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


class Calls(list[tuple[str, float]]):
    """What was called, and when."""

    def note(self, name: str) -> None:
        self.append((name, trio.current_time()))


async def test_functions_are_called_at_their_times(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        for time in 3, 1, 2:
            timers.call_at(time, partial(calls.note, str(time)))
        await trio.sleep(10)
    assert calls == [("1", 1), ("2", 2), ("3", 3)]


async def test_of_two_at_the_same_time_the_earlier_added_is_called_first(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        for name in "first", "second", "third":
            timers.call_at(1, partial(calls.note, name))
        await trio.sleep(2)
    assert [name for name, _ in calls] == ["first", "second", "third"]


async def test_an_earlier_one_can_be_added_while_a_later_one_is_waited_for(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        timers.call_at(100, partial(calls.note, "later"))
        await trio.sleep(10)
        timers.call_at(20, partial(calls.note, "earlier"))
        await trio.sleep(100)
    assert calls == [("earlier", 20), ("later", 100)]


async def test_one_whose_time_has_passed_is_called_at_once_but_not_by_the_caller(
    mock_clock: MockClock,
) -> None:
    calls = Calls()
    async with running() as timers:
        mock_clock.jump(10)
        timers.call_at(5, partial(calls.note, "late"))
        assert calls == []
        await wait_all_tasks_blocked()
        assert calls == [("late", 10)]


async def test_those_added_before_the_task_runs_are_called(autojump_clock: MockClock) -> None:
    timers = Timers()
    calls = Calls()
    timers.call_at(1, partial(calls.note, "early"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert calls == [("early", 1)]


async def test_a_function_can_add_others_that_are_due_now_or_later(autojump_clock: MockClock) -> None:
    calls = Calls()

    def add() -> None:
        calls.note("adds")
        timers.call_at(2, partial(calls.note, "later"))
        timers.call_at(1, partial(calls.note, "now"))

    async with running() as timers:
        timers.call_at(1, add)
        await trio.sleep(3)
    assert calls == [("adds", 1), ("now", 1), ("later", 2)]


async def test_a_function_can_cancel_another_that_is_due_too(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        timers.call_at(1, lambda: other.cancel())
        other = timers.call_at(1, partial(calls.note, "cancelled"))
        await trio.sleep(2)
    assert calls == []


async def test_after_so_many_functions_others_have_their_turn(mock_clock: MockClock) -> None:
    called = 0

    def call() -> None:
        nonlocal called
        called += 1

    async with running() as timers:
        for _ in range(10 * CALLS_PER_TURN):
            timers.call_at(1, call)
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
        seen = [0]
        while seen[-1] < 10 * CALLS_PER_TURN:
            await trio.lowlevel.checkpoint()
            seen.append(called)
    # Two turns, where this one is the last in one pass of the scheduler and the first in the next.
    assert max(after - before for before, after in pairwise(seen)) <= 2 * CALLS_PER_TURN


async def test_of_one_that_is_cancelled_what_it_would_have_called_is_not_kept() -> None:
    timers = Timers()
    calls = Calls()
    kept = weakref.ref(calls)
    timers.call_at(1, partial(calls.note, "cancelled")).cancel()
    del calls
    gc.collect()
    assert kept() is None


async def test_of_one_that_was_due_nothing_is_kept(autojump_clock: MockClock) -> None:
    class Owner:
        def timer_is_due(self, timer: Timer, callback: Callable[[], None]) -> None:
            callback()

    calls, owner = Calls(), Owner()
    kept = weakref.ref(calls), weakref.ref(owner)
    async with running() as timers:
        timer = timers.call_at(1, partial(calls.note, "due"), owner)
        await trio.sleep(2)
        del calls, owner
        gc.collect()
        assert [kept_one() for kept_one in kept] == [None, None]
        timer.cancel()


async def test_of_many_that_are_cancelled_few_are_kept(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        timers.call_at(50, partial(calls.note, "kept"))
        for _ in range(10_000):
            timers.call_at(100, partial(calls.note, "cancelled")).cancel()
        assert sum(isinstance(thing, Timer) for thing in gc.get_objects()) < 150
        await trio.sleep(200)
    assert calls == [("kept", 50)]


async def test_cancelling_again_or_too_late_changes_nothing(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with running() as timers:
        for _ in range(500):
            timer = timers.call_at(1, partial(calls.note, "first"))
            timer.cancel()
            timer.cancel()
        called = [timers.call_at(2, partial(calls.note, "second")) for _ in range(500)]
        await trio.sleep(3)
        for timer in called:
            timer.cancel()
        timers.call_at(4, partial(calls.note, "third"))
        await trio.sleep(2)
    assert calls == [("second", 2)] * 500 + [("third", 4)]


@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.integers(0, 20), max_size=5),  # seconds from now to be called in
            st.lists(st.integers(0, 50), max_size=5),  # which to cancel
            st.integers(0, 10),  # seconds to sleep
        ),
        max_size=12,
    )
)
def test_any_timers_are_called_in_order_and_no_cancelled_one(
    steps: list[tuple[list[int], list[int], int]],
) -> None:
    calls = Calls()
    expected: dict[str, float] = {}

    async def play() -> None:
        made: list[Timer] = []
        async with running() as timers:
            for add, cancel, sleep in steps:
                for seconds in add:
                    # Between the times at which the test itself wakes up.
                    due = trio.current_time() + seconds + 0.5
                    name = str(len(made))
                    made.append(timers.call_at(due, partial(calls.note, name)))
                    expected[name] = due
                for index in cancel:
                    if index < len(made):
                        made[index].cancel()
                        if expected.get(str(index), 0) > trio.current_time():
                            del expected[str(index)]
                await trio.sleep(sleep)
            await trio.sleep(100)

    trio.run(play, clock=MockClock(autojump_threshold=0))
    assert calls == sorted(expected.items(), key=lambda item: (item[1], int(item[0])))


# Waiting with a deadline


async def test_a_condition_that_is_true_is_not_waited_for_even_past_the_deadline() -> None:
    timers = Timers()
    with assert_no_checkpoints():
        assert await timers.in_time(Changes(), lambda: True, trio.current_time() - 1)


async def test_a_condition_that_becomes_true_before_the_deadline_is_in_time(
    autojump_clock: MockClock,
) -> None:
    changes = Changes()
    reached: list[float] = []

    def reach() -> None:
        reached.append(trio.current_time())
        changes.announce()

    async with running() as timers:
        timers.call_at(3, reach)
        assert await timers.in_time(changes, lambda: bool(reached), 5)
        assert trio.current_time() == 3


async def test_a_condition_that_does_not_become_true_is_given_up_at_the_deadline(
    autojump_clock: MockClock,
) -> None:
    changes = Changes()
    async with running() as timers:
        timers.call_at(3, changes.announce)
        assert not await timers.in_time(changes, lambda: False, 5)
        assert trio.current_time() == 5


async def test_what_others_do_when_the_deadline_is_over_still_counts(mock_clock: MockClock) -> None:
    changes = Changes()
    there = False

    async def bring() -> None:
        nonlocal there
        there = True

    async with running() as timers, trio.open_nursery() as nursery:
        mock_clock.jump(10)
        nursery.start_soon(bring)
        assert await timers.in_time(changes, lambda: there, 5)


class Referable(Changes):
    """Changes that a weak reference can be made to."""


async def test_of_a_wait_that_is_over_or_cancelled_nothing_is_kept(autojump_clock: MockClock) -> None:
    changes = Referable()
    kept = weakref.ref(changes)
    async with running() as timers:
        assert not await timers.in_time(changes, lambda: False, 1)
        with trio.move_on_after(1):
            await timers.in_time(changes, lambda: False, 100)
        del changes
        # Trio keeps what woke a task until it wakes another one: here a Cancelled, with its traceback.
        await trio.lowlevel.checkpoint()
        gc.collect()
        assert kept() is None
