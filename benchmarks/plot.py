"""What was measured, as a picture."""

from __future__ import annotations

from itertools import zip_longest
from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.report import number
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.comparisons import Round
    from benchmarks.works import Work

_LABELS = {
    "asgi": "trio-ws-server",
    "uvicorn-websockets": "uvicorn, websockets",
    "uvicorn-sansio": "uvicorn, sansio",
    "granian": "granian",
    "hypercorn": "hypercorn, Trio",
}
_WORKS = (
    "small",
    "pipelined",
    "64k",
    "1m",
    "fan-out",
    "deflate",
    "connect",
    "latency",
    "idle",
    "idle-deflate",
    "keepalive",
)
_COLUMNS = 2
_OURS, _THEIRS = "#2a6f97", "#c5ccd3"


def draw(rounds: Sequence[Round], path: Path) -> None:
    """Draw the ASGI servers side by side, a panel for each work: bars are medians, with all the rounds as dots."""
    mpl.use("agg")
    rows = -(-len(_WORKS) // _COLUMNS)
    figure, panels = pyplot.subplots(rows, _COLUMNS, figsize=(11, 1.75 * rows), layout="constrained")
    for panel, name in zip_longest(panels.flat, _WORKS):
        if name is None:
            panel.set_axis_off()
        else:
            _draw_panel(panel, WORKS[name], rounds)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_panel(panel: Axes, work: Work, rounds: Sequence[Round]) -> None:
    measured = {
        server: [work.quantity.of(one[work.name, server]) for one in rounds if (work.name, server) in one]
        for server in reversed(_LABELS)
    }
    bars = {_LABELS[server]: values for server, values in measured.items() if values}
    colors = [_OURS if label == _LABELS["asgi"] else _THEIRS for label in bars]
    medians = [median(values) for values in bars.values()]
    panel.barh([*bars], medians, color=colors)
    for row, (values, middle) in enumerate(zip(bars.values(), medians, strict=True)):
        panel.plot(values, [row] * len(values), ".", color="black", markersize=3, alpha=0.6)
        panel.text(max(values), row, f"  {number(middle)} {work.quantity.value}", fontsize=8, va="center")
    note = "" if work.quantity.more_is_better else " (less is better)"
    panel.set_title(work.title + note, fontsize=9, loc="left")
    panel.margins(x=0.25)
    panel.set_xlim(left=0)
    panel.tick_params(labelsize=8)
    panel.xaxis.set_visible(False)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
