"""In any window of so many seconds, a peer may send what the rate makes of them and of one second more."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from trio_ws_server.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Sequence

rates = st.sampled_from([1, 2, 3, 10]) | st.integers(1, 1000)


def allowed(rate: int, times: Sequence[float]) -> list[float]:
    limit = RateLimit(rate)
    return [time for time in times if limit.allows(time)]


def within_the_limit(rate: int, times: Sequence[float]) -> list[float]:
    """Return those that would not break the limit in any window that ends with them."""
    kept: list[float] = []
    for time in times:
        window = [*kept, time]
        if all(len(window) - first <= rate * (time - window[first] + 1) for first in range(len(window))):
            kept = window
    return kept


# Times in sixteenths of a second are exact, so that at the limit itself nothing is left to rounding.
gaps = st.sampled_from([0, 0, 1, 5, 8, 16]) | st.integers(0, 100)
sixteenths = st.lists(gaps, max_size=40).map(lambda gaps: [total / 16 for total in accumulate(gaps)])


@given(rates, sixteenths)
def test_an_event_is_allowed_exactly_when_it_breaks_the_limit_in_no_window(
    rate: int, times: list[float]
) -> None:
    assert allowed(rate, times) == within_the_limit(rate, times)


@given(rates, st.floats(0, 1e6), st.lists(st.floats(0, 10), max_size=60))
def test_at_any_times_no_window_has_more_events_than_the_limit(
    rate: int, start: float, pauses: list[float]
) -> None:
    times = allowed(rate, list(accumulate(pauses, initial=start)))
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate * (times[last] - begin + 1) + 1e-6


@given(rates, st.floats(0, 1e6), st.lists(st.floats(1.000001, 100), max_size=60))
def test_a_peer_that_leaves_its_time_between_events_is_never_refused(
    rate: int, start: float, pauses: list[float]
) -> None:
    times = list(accumulate((pause / rate for pause in pauses), initial=start))
    assert allowed(rate, times) == times


@given(rates, st.floats(0, 1e6), st.integers(1, 5))
def test_a_second_after_any_burst_there_is_room_for_another(rate: int, start: float, bursts: int) -> None:
    limit = RateLimit(rate)
    for burst in range(bursts):
        now = start + 1.000001 * burst
        assert [limit.allows(now) for _ in range(rate + 2)] == [True] * rate + [False] * 2
