"""Which server is compared with which at what, what is the goal, and how far it was reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.measuring import Measurement
    from benchmarks.works import Work

Round = dict[tuple[str, str], "Measurement"]
"""What was measured in one round, by the names of work and server. What failed is not in it."""


@dataclass(frozen=True)
class Comparison:
    """
    A row of the table: ours against the best of the peers.

    The goal is a ratio, ours to theirs: at least so much of a rate, at most so much of memory, latency or CPU time.
    Where there is none, it is measured all the same.
    """

    work: Work
    ours: str
    peers: tuple[str, ...]
    goal: float | None = None


ASGI_PEERS = ("uvicorn-websockets", "uvicorn-sansio", "granian")
TRIO_PEERS = ("websockets-trio", "trio-websocket")

_GOALS: list[tuple[str, tuple[str, ...], dict[str, float | None]]] = [
    (
        "asgi",
        ASGI_PEERS,
        {
            "small": 1.3,
            "pipelined": 3.0,
            "64k": 1.2,
            "1m": 1.2,
            "fan-out": 1.2,
            "deflate": 1.2,
            "connect": 1.3,
            "idle": 0.5,
            "idle-deflate": 0.5,
            "latency": 1.0,
        },
    ),
    # granian sends no pings, and hypercorn, which pings, does not get so many connections open within minutes.
    ("asgi", ("uvicorn-websockets", "uvicorn-sansio"), {"keepalive": None}),
    (
        "native",
        TRIO_PEERS,
        {
            "small": 5.0,
            "pipelined": 5.0,
            "64k": 2.0,
            "1m": 2.0,
            "fan-out": 5.0,
            "deflate": 2.0,
            "connect": 2.0,
            "idle": 0.5,
            "idle-deflate": 0.5,
            "latency-native": 1.0,
        },
    ),
    ("native", ("websockets-uvloop",), {"small": 1.7}),
    ("native", ("picows",), {"pipelined": 1.3}),
    ("native", ("c",), {"small": 0.4}),
    (
        "streams",
        ("hypercorn",),
        {
            "small": 3.0,
            "pipelined": 3.0,
            "64k": 3.0,
            "1m": 3.0,
            "fan-out": 3.0,
            "deflate": 3.0,
            "connect": 3.0,
        },
    ),
]


def _able(peers: Sequence[str], work: Work) -> tuple[str, ...]:
    return tuple(peer for peer in peers if SERVERS[peer].has_deflate or not work.deflate)


COMPARISONS = [
    Comparison(WORKS[work], ours, _able(peers, WORKS[work]), goal)
    for ours, peers, goals in _GOALS
    for work, goal in goals.items()
]

_LEAST = {"asgi": "least", "native": "least-native"}
"""What each of ours is measured by: see ``least.py``."""
_LEAST_WORKS = ("small", "pipelined", "fan-out", "deflate", "connect")
"""In which not copying counts, but what Python and Trio take."""


@dataclass(frozen=True)
class Ceiling:
    """How far a goal can be reached on Trio, and how far from that ours is."""

    least: Comparison
    """Of the server that does next to nothing with the peers."""
    ours: Comparison
    """Of ours with that server."""


CEILINGS = [
    Ceiling(replace(comparison, ours=least), Comparison(comparison.work, comparison.ours, (least,)))
    for comparison in COMPARISONS
    if (least := _LEAST.get(comparison.ours)) is not None and comparison.work.name in _LEAST_WORKS
]

YARDSTICK = "c"
_YARDSTICK_WORKS = ("small", "pipelined", "64k", "1m", "connect")
"""What shows that the load isn't the bottleneck, and how far the machine goes."""


def ours(work: Work) -> list[str]:
    """Return the names of our servers that do this work, and of what they are measured by."""
    compared = COMPARISONS + [ceiling.least for ceiling in CEILINGS]
    return list(dict.fromkeys(comparison.ours for comparison in compared if comparison.work is work))


def peers(work: Work) -> list[str]:
    """Return the names of the other servers that do this work."""
    names = [peer for comparison in COMPARISONS if comparison.work is work for peer in comparison.peers]
    return list(dict.fromkeys(names + [YARDSTICK] * (work.name in _YARDSTICK_WORKS)))


@dataclass(frozen=True)
class Ratios:
    """Ours to a peer's, round by round."""

    peer: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure that counts."""
        return median(self.values)


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison."""

    comparison: Comparison
    ratios: Ratios
    """To the peer that comes off best."""
    cpu: Ratios | None
    """Of CPU time for each message, to the peer that takes least; None for memory."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.comparison.goal is None:
            return None
        if self.comparison.work.quantity.more_is_better:
            return self.ratios.median >= self.comparison.goal
        return self.ratios.median <= self.comparison.goal


def outcome(comparison: Comparison, rounds: Sequence[Round]) -> Outcome | None:
    """Compare what was measured in the same round, and so with the same neighbours; None if nothing was."""
    quantity = comparison.work.quantity
    found = _ratios(comparison, rounds, quantity.of)
    if not found:
        return None
    hardest = min if quantity.more_is_better else max
    cpu = _ratios(comparison, rounds, lambda measurement: measurement.cpu_seconds)
    return Outcome(
        comparison,
        hardest(found, key=lambda ratios: ratios.median),
        max(cpu, key=lambda ratios: ratios.median, default=None),
    )


def _ratios(
    comparison: Comparison, rounds: Sequence[Round], value: Callable[[Measurement], float]
) -> list[Ratios]:
    """Return those to each peer that was measured."""
    found = []
    for peer in comparison.peers:
        pairs = [
            (value(one[comparison.work.name, comparison.ours]), value(one[comparison.work.name, peer]))
            for one in rounds
            if {(comparison.work.name, comparison.ours), (comparison.work.name, peer)} <= one.keys()
        ]
        values = tuple(our / their for our, their in pairs if their)
        if values:
            found.append(Ratios(peer, values))
    return found
