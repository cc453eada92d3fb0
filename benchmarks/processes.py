"""Processes on one core: a server with its CPU time and memory, and the load."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.programs import LOAD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).parents[1]

DEADLINE = 60.0
"""Seconds for a process to do what is waited for."""


class ProcessError(Exception):
    """A process did not do what it should."""


def cores() -> tuple[int, int]:
    """Return the core for the server and the core for the load. Raises `ProcessError` where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise ProcessError(
            "needs two cores, one for the server and one for the load; this process may use one"
        )
    return available[0], available[1]


def allow_open_files(count: int) -> None:
    """Let processes started from now on have so many files open. Raises `ProcessError` where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_below(hard, count):
        raise ProcessError(
            f"needs {count:,} open files in a process, and no more than {hard:,} are allowed: raise that limit "
            "(ulimit -Hn), or leave out the works with so many connections (--only)"
        )
    if _is_below(soft, count):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _is_below(limit: int, count: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < count


class ServerProcess:
    """A server that listens, with the processes that it has started itself."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self.pid = process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time, user and system, that it has taken."""
        # In nanoseconds, by thread, where /proc/PID/stat counts ticks of 10 ms.
        nanoseconds = [
            int(thread.read_text().split()[0])
            for pid in self._pids()
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ]
        return sum(nanoseconds) / 1e9

    def resident_bytes(self) -> int:
        """Return the memory that is resident."""
        return sum(_resident_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        pids = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.getpgid(int(entry.name)) == self.pid:
                    pids.append(int(entry.name))
            except ProcessLookupError:
                pass
        return pids


def _resident_bytes(pid: int) -> int:
    # Exact, where /proc/PID/status has a sum of what the cores last told.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise ProcessError(f"the kernel does not tell the memory of process {pid}")


@contextmanager
def serving(command: Sequence[str], port: int, core: int) -> Iterator[ServerProcess]:
    """Start a server on the core, wait until it listens on the port, and kill it in the end."""
    with tempfile.TemporaryFile() as log:
        process = _start(
            command, core, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_listening(process, port)
            yield ServerProcess(process, port)
        except ProcessError as exc:
            log.seek(0)
            said = log.read().decode(errors="replace")
            raise ProcessError(f"{exc}\n{' '.join(command)}\n{said[-4000:]}") from exc
        finally:
            # Not asked to stop: some would wait for their connections. Whoever ended by itself has no group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), DEADLINE).close()
        except ConnectionRefusedError:
            if process.poll() is not None:
                raise ProcessError(f"the server ended with status {process.returncode}") from None
            if time.monotonic() > deadline:
                raise ProcessError(f"the server does not listen after {DEADLINE:.0f} s") from None
            time.sleep(0.02)
        else:
            return


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Load:
    """The load on a server, as ``load.c`` has it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait_for_begin(self) -> None:
        """Wait until the warm-up is over."""
        if self._line() != b"begin\n":
            self._fail()

    def result(self) -> dict[str, Any]:
        """Wait until the time of the measurement is over; return what came of it."""
        line = self._line()
        if not line:
            self._fail()
        result: dict[str, Any] = json.loads(line)
        return result

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _fail(self) -> None:
        assert self._process.stderr is not None
        raise ProcessError(self._process.stderr.read().decode().strip() or "the load took too long")


@contextmanager
def loading(arguments: Sequence[str], prepared: bytes, core: int) -> Iterator[Load]:
    """Start the load on the core, with what it is to send; kill it in the end."""
    process = _start(
        [LOAD, *arguments],
        core,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdin is not None
            process.stdin.write(prepared)
            process.stdin.close()
            yield Load(process)
        finally:
            process.kill()


def _start(command: Sequence[str | Path], core: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that may use this core alone, as may all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return subprocess.Popen(command, cwd=REPOSITORY, **options)
    finally:
        os.sched_setaffinity(0, before)
