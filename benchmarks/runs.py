"""Rounds of measurements: each server at each work, whatever fails."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from benchmarks import comparisons
from benchmarks.measuring import measure
from benchmarks.processes import ProcessError
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.comparisons import Round
    from benchmarks.measuring import Measurement, Timing
    from benchmarks.works import Work

OFFERED_SHARE = 0.5
"""Where latency is measured, this share of what the best peer can take is offered to all."""

TRIES = 2
"""How often a server may fail at a work before it is not given that any more: to fail may take a minute."""


class Run:
    """What is measured with which servers, and what came of it so far."""

    def __init__(self, works: Sequence[Work], names: Sequence[str], timing: Timing) -> None:
        self.rounds: list[Round] = []
        self.failures: list[str] = []
        """What each server said that did not do a work."""
        self._works = works
        self._names = names
        self._timing = timing
        self._offered: dict[str, float] = {}
        self._failed: Counter[tuple[str, str]] = Counter()

    def find_rates(self) -> None:
        """For each work with a rate, see what the peers can take; ours have no say in that."""
        for work in self._works:
            if work.has_rate:
                found = [
                    self._measure(name, WORKS["small"]) for name in self._chosen(comparisons.peers(work))
                ]
                capacities = [measurement.rate for measurement in found if measurement is not None]
                if capacities:
                    self._offered[work.name] = OFFERED_SHARE * max(capacities)
                else:
                    self.failures.append(f"{work.title}: no peer was measured, whose rate says what to offer")

    def add_round(self) -> None:
        """Have each server do each work; each round begins with another server."""
        this: Round = {}
        for work in self._works:
            if not self._is_due(work):
                continue
            servers = self._chosen([*comparisons.ours(work), *comparisons.peers(work)])
            first = len(self.rounds) % max(len(servers), 1)
            for name in servers[first:] + servers[:first]:
                if self._failed[name, work.name] == TRIES:
                    continue
                measurement = self._measure(name, work, self._offered.get(work.name, 0.0))
                if measurement is not None:
                    this[work.name, name] = measurement
        self.rounds.append(this)

    def _is_due(self, work: Work) -> bool:
        if work.has_rate and work.name not in self._offered:
            return False
        return work.rounds is None or len(self.rounds) < work.rounds

    def _chosen(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._names]

    def _measure(self, name: str, work: Work, rate: float = 0.0) -> Measurement | None:
        try:
            measurement = measure(SERVERS[name], work, self._timing, rate)
        except (ProcessError, OSError) as exc:
            self._failed[name, work.name] += 1
            self.failures.append(f"{SERVERS[name].title} at {work.title}: {exc}")
            progress(f"{work.name:15} {name:20} failed: {exc}")
            return None
        figure = f"{work.quantity.of(measurement):12,.2f} {work.quantity.value}"
        progress(f"{work.name:15} {name:20} {figure}, {measurement.cpu_seconds * 1e6:.1f} µs of CPU each")
        return measurement


def progress(line: str) -> None:
    """Tell whoever waits for the run."""
    print(line, file=sys.stderr, flush=True)
