"""
Where the time of a message goes: ``python -m benchmarks.profiling WORK``, or ``benchmarks/profile``.

py-spy looks at the stack of the server some hundred times a second while it is under load. The table has what was
on top of it, as a share of the samples in which the server did not wait, and as that share of the CPU time of a
message.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import Timing, load_on, started
from benchmarks.processes import ProcessError, ServerProcess
from benchmarks.programs import BUILD
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLES_A_SECOND = 200
"""As many as py-spy manages when it takes frames in C too."""

SHOWN = 30
"""Rows of the table."""

_PY_SPY = Path(sys.executable).with_name("py-spy")
_WAITING = {"epoll_wait", "epoll_pwait"}
_SYSTEM_CALLS = {
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "read",
    "write",
    "writev",
    "accept4",
}
_FRAME = re.compile(r"(?P<name>.*) \((?P<file>[^():]*)(?::(?P<line>\d+))?\)")


def place(stack: str) -> str | None:
    """
    Return what is on top of a stack, ``name (file:line);name (file:line)...``: a system call, or a Python function.

    What is in C counts for the function that called it. None if it waits for events.
    """
    frames = [found for frame in stack.split(";") if (found := _FRAME.fullmatch(frame)) is not None]
    top = frames[-1]["name"].lstrip("_")
    if top in _WAITING:
        return None
    python = next((frame for frame in reversed(frames) if frame["file"].endswith(".py")), None)
    if python is None:
        return top
    function = f"{python['name']} ({python['file']})"
    return f"{top}, a system call, in {function}" if top in _SYSTEM_CALLS else function


def tally(lines: Iterable[str]) -> Counter[str]:
    """Return how many samples each place has, of the lines ``stack samples``; waiting is left out."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, samples = line.rsplit(maxsplit=1)
        if (found := place(stack)) is not None:
            counts[found] += int(samples)
    return counts


def _record(process: ServerProcess, format_: str, path: Path, seconds: float) -> None:
    options = ["--native", "--rate", str(SAMPLES_A_SECOND), "--duration", str(int(seconds))]
    done = subprocess.run(
        [_PY_SPY, "record", *options, "--format", format_, "--output", path, "--pid", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProcessError(f"py-spy: {done.stderr.strip()}")


def main() -> None:
    """Profile; print the table, and draw the flame graph."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/profile", description="Show where the time of a message goes."
    )
    parser.add_argument("work", choices=[name for name, work in WORKS.items() if work.mode != "idle"])
    parser.add_argument("--server", choices=SERVERS, default="asgi", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=10, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=5000, metavar="N", help="messages a second, where it is given"
    )
    arguments = parser.parse_args()
    work, server = WORKS[arguments.work], SERVERS[arguments.server]
    graph = BUILD / f"{work.name}-{server.name}.svg"
    timing = Timing(warm_up=0.5, window=2 * arguments.seconds + 5)

    with tempfile.TemporaryDirectory() as folder, started(server, work) as process:
        with load_on(process, work, timing, rate=arguments.rate) as load:
            cpu_before = process.cpu_seconds()
            stacks = Path(folder) / "stacks"
            _record(process, "raw", stacks, arguments.seconds)
            _record(process, "flamegraph", graph, arguments.seconds)
            result = load.result()
            cpu_seconds = (process.cpu_seconds() - cpu_before) / result["messages"]
        counts = tally(stacks.read_text().splitlines())

    samples = counts.total()
    print(
        f"{server.title}: {work.title}: {cpu_seconds * 1e6:.1f} µs of CPU time a message, in {samples} samples\n"
    )
    for where, count in counts.most_common(SHOWN):
        print(f"{count / samples:6.1%} {count / samples * cpu_seconds * 1e6:8.2f} µs  {where}")
    print(f"\nThe flame graph, with waiting: {graph.relative_to(Path.cwd())}")


if __name__ == "__main__":
    try:
        main()
    except ProcessError as exc:
        sys.exit(f"benchmarks/profile: {exc}")
