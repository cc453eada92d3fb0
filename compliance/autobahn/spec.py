"""
Writes the spec of one run: `spec SPEC SUBJECT PORT REPORTS [PATTERN...]`.

What goes to standard output is SPEC with this subject alone, at this port; with the folder for the reports; and
with the name of each case to run: those that match a pattern, or, where there is none, a quick choice for it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compliance.autobahn.cases import matching, quick


def main(template: str, subject: str, port: str, reports: str, *patterns: str) -> None:
    """Print the spec."""
    spec = json.loads(Path(template).read_text())
    url = f"ws://127.0.0.1:{port}"
    if "servers" in spec:
        spec["servers"] = [{"agent": subject, "url": url}]
    else:
        spec["url"] = url
    spec["outdir"] = reports
    spec["cases"] = matching(patterns) if patterns else quick(subject)
    print(json.dumps(spec, indent=4))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as exc:
        sys.exit(str(exc))
