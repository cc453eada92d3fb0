"""
Compares reports of the suite with what is expected: `check SPEC SUBJECT REPORTS`.

Every case that SPEC names must be in the reports on SUBJECT, in the folder REPORTS, with the result that
``expected.json`` has for it, and no others: a better result is a difference too, and a change of that file. Prints
each difference with the report on the case, then the figures. Exits with 1 if there is a difference.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from compliance.autobahn.cases import EXPECTED, matching


def differences(cases: list[str], results: dict[str, Any], reports: Path) -> list[str]:
    """Return a line for each case that was not run, was not to be run, or has not the result expected."""
    lines = [f"{case}: missing" for case in cases if case not in results]
    for case, result in results.items():
        outcome = f"{result['behavior']}, closing {result['behaviorClose']}"
        expected = EXPECTED[case] if case in cases else "not to be run"
        if {result["behavior"], result["behaviorClose"]} != {expected}:
            report = (reports / result["reportfile"]).with_suffix(".html")
            lines.append(f"{case}: {outcome}; expected: {expected}; see {report}")
    return lines


def figures(results: dict[str, Any]) -> str:
    """Return how many cases had which result, and the time that they took together."""
    counts = Counter(result["behavior"] for result in results.values())
    seconds = sum(result["duration"] for result in results.values()) / 1000
    outcomes = ", ".join(f"{count} {behavior}" for behavior, count in counts.most_common())
    return f"{len(results)} cases in {seconds:.0f} s: {outcomes}"


def main(spec: str, subject: str, folder: str) -> None:
    """Print the comparison."""
    cases = matching(json.loads(Path(spec).read_text())["cases"])
    reports = Path(folder)
    try:
        results = json.loads((reports / "index.json").read_text()).get(subject, {})
    except FileNotFoundError as exc:
        sys.exit(f"{subject}: no reports: {exc}")
    lines = differences(cases, results, reports)
    for line in lines:
        print(f"{subject}: {line}")
    print(f"{subject}: {figures(results)}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
