"""The tables of a run, in Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import comparisons
from benchmarks.comparisons import CEILINGS, COMPARISONS, outcome
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS, Quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.comparisons import Comparison, Outcome, Ratios, Round
    from benchmarks.measuring import Measurement
    from benchmarks.works import Work


@dataclass(frozen=True)
class _Column:
    """What else a table of figures tells of each server: the median of this."""

    heading: str
    value: Callable[[Measurement], float]
    format: Callable[[float], str]


def number(value: float) -> str:
    """Return a figure with as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_CPU = _Column("µs of CPU a message", lambda one: one.cpu_seconds * 1e6, "{:,.1f}".format)
_BUSY = [
    _Column("server busy", lambda one: one.server_busy, "{:.0%}".format),
    _Column("load busy", lambda one: one.load_busy, "{:.0%}".format),
]
_MORE = {
    Quantity.RATE: [_CPU, *_BUSY],
    Quantity.MEMORY: [],
    Quantity.LATENCY: [
        _Column("p50, ms", lambda one: one.latency_50 * 1000, number),
        _Column("messages/s", lambda one: one.rate, number),
        _CPU,
        *_BUSY,
    ],
    Quantity.CPU: [_Column("pings/s", lambda one: one.rate, number), *_BUSY],
}


def goals(rounds: Sequence[Round]) -> str:
    """Return what the goals are, and how far they were reached."""
    outcomes = [found for comparison in COMPARISONS if (found := outcome(comparison, rounds)) is not None]
    return _table(
        ["server", "work", "best of the peers", "goal", "ratio", "spread", "met", "CPU a message"],
        [_goal_row(found) for found in outcomes],
    )


def ceilings(rounds: Sequence[Round]) -> str:
    """Return how far the goals can be reached on Trio, and how far from that ours is."""
    rows = []
    for ceiling in CEILINGS:
        found, ours = outcome(ceiling.least, rounds), outcome(ceiling.ours, rounds)
        if found is not None and ours is not None:
            rows.append([*_ratio_cells(found), f"{ours.ratios.median:.2f}", _cpu_cell(ours.cpu)])
    return _table(
        [
            "server",
            "work",
            "best of the peers",
            "goal",
            "ratio",
            "spread",
            "met",
            "ours to the least",
            "our CPU a message",
        ],
        rows,
    )


def _goal_row(found: Outcome) -> list[str]:
    return [*_ratio_cells(found), _cpu_cell(found.cpu)]


def _ratio_cells(found: Outcome) -> list[str]:
    comparison, ratios = found.comparison, found.ratios
    return [
        SERVERS[comparison.ours].title.removeprefix("trio-ws-server, "),
        comparison.work.title,
        SERVERS[ratios.peer].title,
        _goal_cell(comparison),
        f"**{ratios.median:.2f}**",
        f"{min(ratios.values):.2f}..{max(ratios.values):.2f}",
        {True: "yes", False: "no", None: ""}[found.met],
    ]


def _goal_cell(comparison: Comparison) -> str:
    if comparison.goal is None:
        return "none"
    return f"{'≥' if comparison.work.quantity.more_is_better else '≤'} {comparison.goal:g}"


def _cpu_cell(cpu: Ratios | None) -> str:
    return "" if cpu is None else f"{cpu.median:.2f} of {SERVERS[cpu.peer].title}"


def figures(rounds: Sequence[Round]) -> str:
    """Return what was measured: a table for each work."""
    return "\n\n".join(
        f"### {work.title[0].upper()}{work.title[1:]}\n\n{_figures(work, rounds)}"
        for work in WORKS.values()
        if any(name == work.name for one in rounds for name, _ in one)
    )


def _figures(work: Work, rounds: Sequence[Round]) -> str:
    more = _MORE[work.quantity]
    headings = [
        "server",
        f"{work.quantity.value}, median",
        "lowest..highest",
        *(column.heading for column in more),
    ]
    rows = []
    for server in [*comparisons.ours(work), *comparisons.peers(work)]:
        measured = [one[work.name, server] for one in rounds if (work.name, server) in one]
        if measured:
            rows.append([SERVERS[server].title, *_figure_cells(work, measured)])
    return _table(headings, rows)


def _figure_cells(work: Work, measured: Sequence[Measurement]) -> list[str]:
    values = sorted(map(work.quantity.of, measured))
    return [
        number(median(values)),
        f"{number(values[0])}..{number(values[-1])}",
        *(column.format(median(map(column.value, measured))) for column in _MORE[work.quantity]),
    ]


def table_of(facts: dict[str, str]) -> str:
    """Return a table of names and what they stand for."""
    return _table(["", ""], [[name, fact] for name, fact in facts.items()])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
