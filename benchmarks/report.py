"""The tables of a run, in Markdown."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from benchmarks import comparisons
from benchmarks.comparisons import COMPARISONS, outcome
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS, Quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.comparisons import Outcome, Ratios, Round
    from benchmarks.measuring import Measurement
    from benchmarks.works import Work


def goals(rounds: Sequence[Round]) -> str:
    """Return what the goals are, and how far they were reached."""
    outcomes = [found for comparison in COMPARISONS if (found := outcome(comparison, rounds)) is not None]
    return _table(
        ["server", "work", "best of the peers", "goal", "ratio", "spread", "met", "CPU a message"],
        [_goal_row(found) for found in outcomes],
    )


def _goal_row(found: Outcome) -> list[str]:
    comparison, ratios = found.comparison, found.ratios
    sign = "≥" if comparison.work.quantity.more_is_better else "≤"
    return [
        SERVERS[comparison.ours].title.removeprefix("trio-ws-server, "),
        comparison.work.title,
        SERVERS[ratios.peer].title,
        f"{sign} {comparison.goal:g}",
        f"**{ratios.median:.2f}**",
        f"{min(ratios.values):.2f}..{max(ratios.values):.2f}",
        "yes" if found.met else "no",
        _cpu_cell(found.cpu),
    ]


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
    unit = work.quantity.value
    headings = ["server", f"{unit}, median", "lowest..highest"]
    if work.quantity is not Quantity.MEMORY:
        headings += ["µs CPU a message", "load busy"]
    rows = []
    for server in [*comparisons.ours(work), *comparisons.peers(work)]:
        measured = [one[work.name, server] for one in rounds if (work.name, server) in one]
        if measured:
            rows.append([SERVERS[server].title, *_figure_cells(work, measured)])
    return _table(headings, rows)


def _figure_cells(work: Work, measured: Sequence[Measurement]) -> list[str]:
    values = sorted(map(work.quantity.of, measured))
    cells = [_number(median(values)), f"{_number(values[0])}..{_number(values[-1])}"]
    if work.quantity is not Quantity.MEMORY:
        cells.append(f"{median(one.cpu_seconds for one in measured) * 1e6:,.1f}")
        cells.append(f"{median(one.load_busy for one in measured):.0%}")
    return cells


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table_of(facts: dict[str, str]) -> str:
    """Return a table of names and what they stand for."""
    return _table(["", ""], [[name, fact] for name, fact in facts.items()])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
