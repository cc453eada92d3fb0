"""Ratios, and whether they reach the goal."""

from __future__ import annotations

import pytest

from benchmarks.comparisons import CEILINGS, COMPARISONS, Comparison, outcome
from benchmarks.measuring import Measurement
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

RATE = Comparison(WORKS["small"], "asgi", ("granian", "uvicorn-sansio"), 1.3)
MEMORY = Comparison(WORKS["idle"], "asgi", ("granian", "uvicorn-sansio"), 0.5)


def rates(**by_server: float) -> dict[tuple[str, str], Measurement]:
    """Return a round of "small" with these messages a second."""
    return {("small", name.replace("_", "-")): Measurement(rate=rate) for name, rate in by_server.items()}


def memory(**by_server: float) -> dict[tuple[str, str], Measurement]:
    """Return a round of "idle" with these bytes for each connection."""
    return {
        ("idle", name.replace("_", "-")): Measurement(connection_bytes=size)
        for name, size in by_server.items()
    }


def test_a_ratio_is_of_two_figures_of_the_same_round_and_the_median_counts() -> None:
    found = outcome(
        Comparison(WORKS["small"], "asgi", ("granian",), 1.3),
        [rates(asgi=200, granian=100), rates(asgi=20, granian=20), rates(asgi=3000, granian=1000)],
    )

    assert found is not None
    assert found.ratios.values == (2.0, 1.0, 3.0)
    assert found.ratios.median == 2.0


def test_the_peer_with_the_highest_rate_counts() -> None:
    found = outcome(RATE, [rates(asgi=200, granian=100, uvicorn_sansio=160)])

    assert found is not None
    assert (found.ratios.peer, found.ratios.median) == ("uvicorn-sansio", 1.25)


def test_the_peer_with_the_least_memory_counts() -> None:
    found = outcome(MEMORY, [memory(asgi=20, granian=100, uvicorn_sansio=80)])

    assert found is not None
    assert (found.ratios.peer, found.ratios.median) == ("uvicorn-sansio", 0.25)


@pytest.mark.parametrize(("rate", "met"), [(129, False), (130, True)])
def test_a_rate_must_be_at_least_the_goal(rate: float, met: bool) -> None:
    found = outcome(RATE, [rates(asgi=rate, granian=100)])

    assert found is not None
    assert found.met is met


@pytest.mark.parametrize(("size", "met"), [(50, True), (51, False)])
def test_memory_must_be_at_most_the_goal(size: float, met: bool) -> None:
    found = outcome(MEMORY, [memory(asgi=size, granian=100)])

    assert found is not None
    assert found.met is met


def test_what_has_no_goal_is_neither_met_nor_missed() -> None:
    found = outcome(Comparison(WORKS["small"], "asgi", ("granian",)), [rates(asgi=200, granian=100)])

    assert found is not None
    assert found.ratios.median == 2.0
    assert found.met is None


def test_the_peer_that_takes_least_for_a_ping_counts() -> None:
    this = {
        ("keepalive", "asgi"): Measurement(rate=1, cpu_seconds=30e-6),
        ("keepalive", "uvicorn-websockets"): Measurement(rate=1, cpu_seconds=100e-6),
        ("keepalive", "uvicorn-sansio"): Measurement(rate=1, cpu_seconds=60e-6),
    }

    found = outcome(Comparison(WORKS["keepalive"], "asgi", ("uvicorn-websockets", "uvicorn-sansio")), [this])

    assert found is not None
    assert (found.ratios.peer, found.ratios.median) == ("uvicorn-sansio", 0.5)


def test_a_round_in_which_either_failed_does_not_count() -> None:
    found = outcome(RATE, [rates(asgi=200, granian=100), rates(asgi=200), rates(granian=100)])

    assert found is not None
    assert found.ratios.values == (2.0,)


def test_there_is_no_outcome_where_nothing_was_measured() -> None:
    assert outcome(RATE, [memory(asgi=1, granian=1)]) is None


def test_the_cpu_time_of_a_message_is_compared_with_the_peer_that_takes_least() -> None:
    this = {
        ("small", "asgi"): Measurement(rate=1, cpu_seconds=6e-6),
        ("small", "granian"): Measurement(rate=1, cpu_seconds=12e-6),
        ("small", "uvicorn-sansio"): Measurement(rate=2, cpu_seconds=24e-6),
    }

    found = outcome(RATE, [this])

    assert found is not None
    assert found.cpu is not None
    assert (found.cpu.peer, found.cpu.median) == ("granian", 0.5)


def test_every_comparison_is_with_servers_that_can_do_the_work() -> None:
    for comparison in COMPARISONS + [ceiling.least for ceiling in CEILINGS]:
        assert comparison.peers
        for peer in comparison.peers:
            assert SERVERS[peer].has_deflate or not comparison.work.deflate
