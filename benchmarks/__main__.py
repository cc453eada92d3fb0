"""
Measures the servers against each other: ``python -m benchmarks``, or ``benchmarks/run``, which installs them.

Each round has every server do every work once, for a short time; a ratio is of two figures of one round, so that
what else the machine does in the meantime matters as little as it can. A run of everything writes results.md and
results.png; any other only prints.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import plot, report
from benchmarks.machine import machine, versions
from benchmarks.measuring import Timing
from benchmarks.processes import ProcessError, cores
from benchmarks.runs import Run, progress
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

HERE = Path(__file__).parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure servers against each other.")

    def option(name: str, help_: str, **settings: Any) -> None:
        parser.add_argument(name, help=help_, **settings)

    option("--rounds", "default: %(default)s", type=int, default=7, metavar="N")
    option("--seconds", "of each window; default: %(default)s", type=float, default=1.5, metavar="S")
    option("--warm-up", "before each window; default: %(default)s", type=float, default=0.5, metavar="S")
    option("--only", f"of {', '.join(WORKS)}", nargs="+", choices=WORKS, metavar="WORK")
    option("--servers", f"of {', '.join(SERVERS)}", nargs="+", choices=SERVERS, metavar="SERVER")
    option("--quick", "3 rounds, 0.5 s each after 0.2 s: for orientation", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warm_up = 3, 0.5, 0.2
    return arguments


def _document(run: Run, arguments: argparse.Namespace, seconds: float) -> str:
    facts = machine() | versions(SERVERS.values())
    facts["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
    facts["run"] = (
        f"{arguments.rounds} rounds, {arguments.seconds:g} s each after {arguments.warm_up:g} s of warm-up, "
        f"in {seconds / 60:.0f} minutes"
    )
    return (
        (HERE / "results-template.md")
        .read_text()
        .format(
            goals=report.goals(run.rounds),
            ceilings=report.ceilings(run.rounds),
            figures=report.figures(run.rounds),
            facts=report.table_of(facts),
            failures="".join(f"- {failure.splitlines()[0]}\n" for failure in run.failures) or "None.\n",
        )
    )


def main() -> None:
    """Measure, and tell."""
    arguments = _arguments()
    works = [WORKS[name] for name in arguments.only or WORKS]
    run = Run(
        works, arguments.servers or [*SERVERS], Timing(warm_up=arguments.warm_up, window=arguments.seconds)
    )
    started = time.monotonic()
    try:
        cores()
    except ProcessError as exc:
        sys.exit(f"benchmarks/run: {exc}")
    run.find_rates()
    for number in range(1, arguments.rounds + 1):
        progress(f"-- round {number} of {arguments.rounds}")
        run.add_round()
    print(report.goals(run.rounds), report.ceilings(run.rounds), report.figures(run.rounds), sep="\n\n")
    if not (arguments.only or arguments.servers or arguments.quick):
        (HERE / "results.md").write_text(_document(run, arguments, time.monotonic() - started))
        plot.draw(run.rounds, HERE / "results.png")
    if run.failures:
        sys.exit("\n".join(["benchmarks/run: there were failures:", *run.failures]))


if __name__ == "__main__":
    main()
