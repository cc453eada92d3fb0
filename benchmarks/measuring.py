"""One server under one load: what came of it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import frames
from benchmarks.processes import ProcessError, allow_open_files, cores, free_port, loading, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.processes import Load, ServerProcess
    from benchmarks.servers import Server
    from benchmarks.works import Work

FIRST_CONNECTIONS = 50
"""After so many have come and gone, what was imported and cached counts no more as what a connection takes."""

OTHER_FILES = 200
"""What a server has open beside its connections, and more."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for which a server is warmed up, and then measured."""

    warm_up: float
    window: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one server did in one round. What the work does not tell is 0."""

    rate: float = 0.0
    """Messages received (fan-out: by all clients together; connect: connections; keepalive: pings) a second."""
    cpu_seconds: float = 0.0
    """CPU time, user and system, of the server's processes for each of these."""
    load_busy: float = 0.0
    """Share of the time in which the load did not wait for the server."""
    latency_50: float = 0.0
    latency_99: float = 0.0
    """Seconds in which 50 and 99 % of the messages came back."""
    connection_bytes: float = 0.0
    """Resident memory for each connection."""

    @property
    def server_busy(self) -> float:
        """CPU time of the server's processes in all, in each second."""
        return self.rate * self.cpu_seconds


def measure(server: Server, work: Work, timing: Timing, rate: float = 0.0) -> Measurement:
    """
    Start the server, and put the load on it: where the work has a rate, so many messages a second.

    Raises `ProcessError` for a server that doesn't do what the work asks.
    """
    with started(server, work) as process:
        if work.mode == "idle":
            return _measure_memory(process, work, timing)
        with load_on(process, work, timing, rate=rate) as load:
            cpu_before = process.cpu_seconds()
            result = load.result()
            cpu_seconds = process.cpu_seconds() - cpu_before
        if not result["messages"]:
            raise ProcessError("nothing came back")
        return Measurement(
            rate=result["messages"] / result["seconds"],
            cpu_seconds=cpu_seconds / result["messages"],
            load_busy=result["cpu_seconds"] / result["seconds"],
            latency_50=result.get("latency_50", 0.0),
            latency_99=result.get("latency_99", 0.0),
        )


def _measure_memory(process: ServerProcess, work: Work, timing: Timing) -> Measurement:
    with load_on(process, work, timing, connections=FIRST_CONNECTIONS):
        pass
    before = process.resident_bytes()
    with load_on(process, work, timing):
        time.sleep(work.silence)
        return Measurement(connection_bytes=(process.resident_bytes() - before) / work.connections)


@contextmanager
def started(server: Server, work: Work) -> Iterator[ServerProcess]:
    """Have the server listen, on its core, for this work."""
    server_core, _ = cores()
    allow_open_files(work.connections + OTHER_FILES)
    port = free_port()
    with serving(server.command(work, port), port, server_core) as process:
        yield process


@contextmanager
def load_on(
    process: ServerProcess, work: Work, timing: Timing, *, connections: int | None = None, rate: float = 0.0
) -> Iterator[Load]:
    """Have the load do this work, with so many connections if told; the body runs when the warm-up is over."""
    _, load_core = cores()
    count = connections or work.connections
    window = work.window(timing.window)
    arguments = (work.mode, process.port, count, work.in_flight, timing.warm_up, window, rate)
    with loading([*map(str, arguments)], _prepared(work, process.port), load_core) as load:
        load.wait_for_begin()
        yield load


def _prepared(work: Work, port: int) -> bytes:
    """Return what the load reads from its standard input."""
    request = frames.opening_request(port, deflate=work.deflate)
    expected = b"permessage-deflate" if work.deflate else b""
    blocks = [request, expected, frames.CLOSE_FRAME, *work.frames()]
    return b"".join(len(block).to_bytes(4, "little") + block for block in blocks)
