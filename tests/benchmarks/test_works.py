"""What the works ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.works import WORKS


@pytest.mark.parametrize(("asked", "measured"), [(0.5, 2), (2, 2), (2.5, 4)])
def test_pings_are_counted_over_whole_intervals(asked: float, measured: float) -> None:
    assert replace(WORKS["keepalive"], ping_interval=2).window(asked) == measured


def test_connections_are_idle_that_have_been_pinged_twice_and_had_time_to_answer() -> None:
    assert replace(WORKS["idle"], ping_interval=2).silence == 5
    assert WORKS["idle"].silence == 0


def test_what_has_no_pings_is_measured_for_as_long_as_asked() -> None:
    assert WORKS["small"].window(0.5) == 0.5
