"""What the servers are given to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Literal

from benchmarks import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measuring import Measurement

KIB = 1024


class Quantity(Enum):
    """What is compared; the value is its unit."""

    RATE = "/s"
    MEMORY = "KiB"
    LATENCY = "ms"
    CPU = "µs of CPU"

    @property
    def more_is_better(self) -> bool:
        """Whether a server is ahead that has more of it."""
        return self is Quantity.RATE

    def of(self, measurement: Measurement) -> float:
        """Return it, in its unit."""
        match self:
            case Quantity.RATE:
                return measurement.rate
            case Quantity.MEMORY:
                return measurement.connection_bytes / KIB
            case Quantity.LATENCY:
                return measurement.latency_99 * 1000
            case Quantity.CPU:
                return measurement.cpu_seconds * 1e6


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of load, as ``load.c`` has them; the application that it is for."""

    name: str
    title: str
    mode: Literal["echo", "rate", "fan-out", "connect", "idle", "keepalive"] = "echo"
    connections: int
    in_flight: int = 1
    frames: Callable[[], list[bytes]]
    deflate: bool = False
    ping_interval: float | None = None
    """Seconds after which the server is to send a ping; None: what it does by itself."""
    rounds: int | None = None
    """How many rounds have it, where it takes long; None: all."""

    @property
    def app(self) -> Literal["echo", "fan-out"]:
        """What the server is to do with messages."""
        return "fan-out" if self.mode == "fan-out" else "echo"

    @property
    def has_rate(self) -> bool:
        """Whether so many messages a second are sent, whatever the server does."""
        return self.mode == "rate"

    @property
    def quantity(self) -> Quantity:
        """What is compared in this work."""
        others = {"idle": Quantity.MEMORY, "rate": Quantity.LATENCY, "keepalive": Quantity.CPU}
        return others.get(self.mode, Quantity.RATE)

    def window(self, seconds: float) -> float:
        """Return for how long to measure, at least so many seconds: whole intervals of pings."""
        if self.ping_interval is None:
            return seconds
        return ceil(seconds / self.ping_interval) * self.ping_interval

    @property
    def silence(self) -> float:
        """Seconds without messages before the memory of connections is looked at: two pings, and time to answer."""
        return 0.0 if self.ping_interval is None else 2.5 * self.ping_interval


_SMALL = partial(frames.texts, 16, 64)
_JSON = partial(frames.compressed_json, 16, KIB)


def _latency(name: str) -> Work:
    title = "p99 latency at half the best peer's rate, 64 B text"
    return Work(name=name, title=title, mode="rate", connections=100, frames=_SMALL)


WORKS = {
    work.name: work
    for work in [
        Work(name="small", title="64 B text, 100 connections, one in flight", connections=100, frames=_SMALL),
        Work(
            name="pipelined",
            title="64 B text, 10 connections, 16 in flight",
            connections=10,
            in_flight=16,
            frames=_SMALL,
        ),
        Work(
            name="64k",
            title="64 KiB binary, 4 connections",
            connections=4,
            frames=partial(frames.binaries, 4, 64 * KIB),
        ),
        Work(
            name="1m",
            title="1 MiB binary, 4 connections",
            connections=4,
            frames=partial(frames.binaries, 1, KIB * KIB),
        ),
        Work(
            name="fan-out",
            title="fan-out, 128 B text to 200 clients",
            mode="fan-out",
            connections=200,
            frames=partial(frames.texts, 16, 128),
        ),
        Work(
            name="deflate",
            title="1 KiB JSON text, compressed, 100 connections",
            connections=100,
            frames=_JSON,
            deflate=True,
        ),
        Work(
            name="connect",
            title="new connections: handshake, one echo, close",
            mode="connect",
            connections=16,
            frames=_SMALL,
        ),
        _latency("latency"),
        _latency("latency-native"),
        Work(name="idle", title="idle connection", mode="idle", connections=2000, frames=_SMALL),
        Work(
            name="idle-deflate",
            title="idle connection, with permessage-deflate",
            mode="idle",
            connections=2000,
            frames=_JSON,
            deflate=True,
            ping_interval=3,
            rounds=3,
        ),
        Work(
            name="keepalive",
            title="a ping to each of 10,000 idle connections, every 5 s",
            mode="keepalive",
            connections=10_000,
            frames=_SMALL,
            ping_interval=5,
            rounds=3,
        ),
    ]
}
"""By name."""
