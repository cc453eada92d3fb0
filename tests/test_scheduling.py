"""Waiting for changes, giving way, and serving tasks: what connections need of Trio's scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from trio_ws_server.scheduling import Changes, give_way, pace, serving_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def fail(error: Exception) -> None:
    raise error


# Changes


async def test_a_condition_that_is_true_is_not_waited_for() -> None:
    with assert_no_checkpoints():
        await Changes().until(lambda: True)


async def test_every_waiting_task_wakes_when_its_own_condition_is_true() -> None:
    changes = Changes()
    reached = 0
    woken: list[int] = []

    async def wait_for(number: int) -> None:
        await changes.until(lambda: reached >= number)
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in (1, 1, 2):
            nursery.start_soon(wait_for, number)
        await wait_all_tasks_blocked()
        for expected in [], [1, 1], [1, 1, 2]:
            changes.announce()
            await wait_all_tasks_blocked()
            assert woken == expected
            reached += 1


async def test_a_condition_that_was_true_only_until_the_task_ran_is_waited_for_again() -> None:
    changes = Changes()
    there = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.until, lambda: there)
        await wait_all_tasks_blocked()
        there = True
        changes.announce()
        there = False
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_wait_leaves_the_others_waiting(cancelled: int) -> None:
    changes = Changes()
    ready = False
    scopes = [trio.CancelScope() for _ in range(3)]
    woken: list[int] = []

    async def wait(number: int) -> None:
        with scopes[number]:
            await changes.until(lambda: ready)
            woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        scopes[cancelled].cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(changes.until, lambda: ready)
        await wait_all_tasks_blocked()
        ready = True
        changes.announce()
    assert sorted(woken) == [number for number in range(3) if number != cancelled]


# Giving way


async def test_every_call_checks_for_cancellation() -> None:
    for _ in range(64):
        with trio.CancelScope() as scope:
            scope.cancel()
            await pace()
        assert scope.cancelled_caught


async def test_who_is_given_what_is_there_though_cancelled_is_interrupted_once_in_32_calls() -> None:
    interrupted = 0
    for _ in range(64):
        with trio.CancelScope() as scope:
            scope.cancel()
            await give_way()
        interrupted += scope.cancelled_caught
    assert interrupted == 2


@pytest.mark.parametrize("call", [pace, give_way])
async def test_a_task_that_never_waits_yields_once_in_32_calls(call: Callable[[], Awaitable[None]]) -> None:
    turns_of_another = 0

    async def count_turns() -> None:
        nonlocal turns_of_another
        while True:
            turns_of_another += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        for turns in range(1, 10):
            for _ in range(32):
                await call()
            assert turns_of_another in (turns, turns - 1)
        nursery.cancel_scope.cancel()


# Serving tasks


async def test_serving_tasks_are_cancelled_when_the_body_ends() -> None:
    cancelled = False

    async def serve() -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled = True
            raise

    async with serving_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked()
    assert cancelled


async def serve_a_body_that_raises(error: Exception, *, while_handling: Exception | None = None) -> None:
    async with serving_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        if while_handling is None:
            raise error
        try:
            raise while_handling
        except Exception:
            raise error  # noqa: B904 (a context without a cause is what is wanted)


async def test_an_exception_of_the_body_comes_out_as_it_was_raised() -> None:
    error, context = ValueError("body"), KeyError("context")
    with pytest.raises(ValueError, match="body") as caught:
        await serve_a_body_that_raises(error, while_handling=context)
    assert caught.value is error
    assert error.__context__ is context
    assert not error.__suppress_context__


async def test_an_exception_group_of_the_body_is_not_wrapped_in_another() -> None:
    error = ValueError()
    with pytest.raises(ExceptionGroup, match="the body's own") as caught:
        await serve_a_body_that_raises(ExceptionGroup("the body's own", [error]))
    assert caught.value.exceptions == (error,)


async def test_a_failed_serving_task_cancels_the_body_and_comes_out_in_a_group() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="task")):
        async with serving_nursery() as nursery:
            nursery.start_soon(fail, ValueError("task"))
            await trio.sleep_forever()


async def test_where_both_fail_both_come_out() -> None:
    with pytest.RaisesGroup(KeyError, ValueError):
        async with serving_nursery() as nursery:
            nursery.start_soon(fail, ValueError("task"))
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("body")


async def test_cancelling_the_body_from_outside_is_caught_by_the_scope_that_did_it() -> None:
    with trio.CancelScope() as scope:
        async with serving_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_body_may_cancel_its_serving_nursery() -> None:
    async with serving_nursery() as nursery:
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
