"""The tables of a run."""

from __future__ import annotations

from benchmarks import report
from benchmarks.measuring import Measurement


def rates(ours: float, theirs: float) -> dict[tuple[str, str], Measurement]:
    """Return a round of "small", ours and granian's, with as much CPU time as there is."""
    return {
        ("small", "asgi"): Measurement(rate=ours, cpu_seconds=1 / ours, load_busy=0.5),
        ("small", "granian"): Measurement(rate=theirs, cpu_seconds=1 / theirs, load_busy=0.25),
    }


PINGS = {
    ("keepalive", "asgi"): Measurement(rate=2000, cpu_seconds=30e-6, load_busy=0.1),
    ("keepalive", "uvicorn-sansio"): Measurement(rate=2000, cpu_seconds=60e-6, load_busy=0.1),
}
LATENCIES = {
    ("latency", "asgi"): Measurement(
        rate=15000, cpu_seconds=20e-6, load_busy=0.3, latency_50=0.0001, latency_99=0.0004
    )
}


def rows(table: str) -> list[list[str]]:
    """Return the cells of a table, headings first, without the line below these."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"
    ]
    return [lines[0], *lines[2:]]


def test_a_goal_has_its_ratio_with_the_spread_and_cpu_time_and_whether_it_is_met() -> None:
    headings, row = rows(report.goals([rates(150, 100), rates(120, 100), rates(200, 100)]))

    assert dict(zip(headings, row, strict=True)) == {
        "server": "ASGI",
        "work": "64 B text, 100 connections, one in flight",
        "best of the peers": "granian",
        "goal": "≥ 1.3",
        "ratio": "**1.50**",
        "spread": "1.20..2.00",
        "met": "yes",
        "CPU a message": "0.67 of granian",
    }


def test_a_goal_that_is_missed_says_so() -> None:
    headings, row = rows(report.goals([rates(100, 100)]))

    assert dict(zip(headings, row, strict=True))["met"] == "no"


def test_a_ceiling_says_whether_the_goal_is_in_reach_and_how_far_ours_is_from_it() -> None:
    least = {("small", "least"): Measurement(rate=200, cpu_seconds=1 / 200)}

    headings, row = rows(report.ceilings([rates(150, 100) | least]))

    cells = dict(zip(headings, row, strict=True))
    assert (cells["server"], cells["best of the peers"]) == ("the least on Trio, ASGI", "granian")
    assert (cells["goal"], cells["ratio"], cells["met"]) == ("≥ 1.3", "**2.00**", "yes")
    assert cells["ours to the least"] == "0.75"
    assert cells["our CPU a message"] == "1.33 of the least on Trio, ASGI"


def test_what_has_no_goal_is_told_without_one() -> None:
    headings, row = rows(report.goals([PINGS]))

    cells = dict(zip(headings, row, strict=True))
    assert (cells["goal"], cells["ratio"], cells["met"]) == ("none", "**0.50**", "")


def test_figures_of_a_rate_tell_who_was_busy() -> None:
    assert rows(report.figures([rates(150, 100)])) == [
        ["server", "/s, median", "lowest..highest", "µs of CPU a message", "server busy", "load busy"],
        ["trio-ws-server, ASGI", "150", "150..150", "6,666.7", "100%", "50%"],
        ["granian", "100", "100..100", "10,000.0", "100%", "25%"],
    ]


def test_figures_of_pings_tell_the_cpu_time_of_each_and_in_all() -> None:
    assert rows(report.figures([PINGS]))[:2] == [
        ["server", "µs of CPU, median", "lowest..highest", "pings/s", "server busy", "load busy"],
        ["trio-ws-server, ASGI", "30.0", "30.0..30.0", "2,000", "6%", "10%"],
    ]


def test_figures_of_latency_tell_the_rate_at_which_it_was() -> None:
    headings, row = rows(report.figures([LATENCIES]))

    cells = dict(zip(headings, row, strict=True))
    assert (cells["ms, median"], cells["p50, ms"], cells["messages/s"]) == ("0.40", "0.10", "15,000")


def test_of_a_server_that_failed_in_a_round_the_others_count() -> None:
    table = rows(report.figures([rates(100, 100), {("small", "asgi"): Measurement(rate=300)}]))

    assert [row[:3] for row in table[1:]] == [
        ["trio-ws-server, ASGI", "200", "100..300"],
        ["granian", "100", "100..100"],
    ]
