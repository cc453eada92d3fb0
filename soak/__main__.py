"""
Run the soak: ``python -m soak MINUTES [--clients N] [--seed SEED]``.

Starts the servers, has the clients come and go, and looks at what the servers hold when all clients are gone: at
the start; after a warm-up, which fills caches and the allocator's arenas; at the end. Prints what it saw, and exits
with 1 if a bound was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from soak import abusive, well_behaved
from soak.servers import TIMEOUTS, Figures, Server, running_servers
from soak.well_behaved import Tally
from trio_ws_server import ConnectionClosed, connect
from trio_ws_server.server import LIFESPAN_GRACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    WellBehaved = Callable[[Server, Random, Tally], Awaitable[None]]
    Abusive = Callable[[Server, Random], Awaitable[None]]

WELL_BEHAVED_SHARE = 0.5

# How often each comes, compared to the others.

WELL_BEHAVED: dict[WellBehaved, int] = {
    well_behaved.our_client: 10,
    well_behaved.websockets_client: 5,
    well_behaved.wsproto_client: 10,
    well_behaved.http_keep_alive: 5,
    well_behaved.client_of_a_difficult_handler: 5,
    well_behaved.denied_client: 1,
    well_behaved.cancelled_client: 5,
}
ABUSIVE: dict[Abusive, int] = {
    abusive.resetting: 5,
    abusive.resetting_before_tls: 1,
    abusive.closing_abruptly: 5,
    abusive.half_closing: 5,
    abusive.vanishing: 1,
    abusive.stalled_reader: 1,
    abusive.never_answering_close: 1,
    abusive.slow_head: 1,
    abusive.slow_body: 1,
    abusive.slow_frame: 1,
    abusive.garbage_for_a_request: 1,
    abusive.broken_request: 1,
    abusive.garbage_for_frames: 1,
    abusive.protocol_error: 1,
    abusive.oversized_message: 1,
    abusive.bomb: 1,
    abusive.ping_flood: 1,
    abusive.flood_of_tiny_fragments: 1,
}

# Bounds: what a server may hold at the end, beyond what it held before.

MORE_OBJECTS = 500
MORE_RSS_PER_CLIENT = 128
"""KiB: the allocator keeps what the most connections took that one server ever had at a time."""

WARM_UP = 20.0
"""Seconds: as long as it takes until as many of the slow clients are there at a time as there will ever be."""

SESSION_TIMEOUT = 120.0
"""Seconds for a well-behaved client, on a machine that has much else to do."""


SHOWN_FAILURES = 20
"""Of so many the traceback is printed; all are counted."""


class Soak:
    """What runs, and what was seen of it."""

    def __init__(self, servers: Sequence[Server], clients: int, seed: str) -> None:
        self.tally = Tally()
        self.sessions: Counter[str] = Counter()
        self.failures: list[str] = []
        """What should not have been, in words."""
        self._servers = servers
        self._clients = clients
        self._seed = seed

    async def run(self, seconds: float) -> None:
        """Have the clients come and go for so long, and wait until the last has gone."""
        deadline = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                nursery.start_soon(self._come_and_go, Random(f"{self._seed}/{seconds}/{number}"), deadline)

    async def _come_and_go(self, random: Random, deadline: float) -> None:
        """Be one client after the other; don't begin all at once."""
        await trio.sleep(random.uniform(0, 2))
        while trio.current_time() < deadline:
            server = random.choice(self._servers)
            if random.random() < WELL_BEHAVED_SHARE:
                (client,) = random.choices([*WELL_BEHAVED], [*WELL_BEHAVED.values()])
                name, call = client.__name__, partial(_behave, client, server, random, self.tally)
            else:
                (abuser,) = random.choices([*ABUSIVE], [*ABUSIVE.values()])
                name, call = abuser.__name__, partial(_abuse, abuser, server, random, deadline)
            self.sessions[name] += 1
            try:
                await call()
            except Exception:
                self.failures.append(f"{name} at {server.name}:\n{traceback.format_exc()}")


async def _behave(client: WellBehaved, server: Server, random: Random, tally: Tally) -> None:
    with trio.fail_after(SESSION_TIMEOUT):
        await client(server, random, tally)


async def _abuse(client: Abusive, server: Server, random: Random, deadline: float) -> None:
    """Run a client that is not surprised by a connection that breaks, and leaves when all do."""
    with trio.move_on_at(deadline):
        try:
            await client(server, random)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass


async def soak(servers: Sequence[Server], seconds: float, clients: int, seed: str) -> list[str]:
    """Run all of it; print what was seen; return what should not have been."""
    it = Soak(servers, clients, seed)
    idle = [await server.figures() for server in servers]
    await it.run(WARM_UP)
    warm = await _settled(servers, idle)
    await it.run(seconds)
    end = await _settled(servers, idle)

    for name, count in sorted(it.sessions.items()):
        print(f"{count:8} {name}")
    print(f"{it.tally.sent:8} messages sent by the well-behaved, {it.tally.returned} came back\n")
    print(f"{'server':20} {'when':7}", *(f"{name:>11}" for name in Figures._fields))
    for server, *states in zip(servers, idle, warm, end, strict=True):
        for when, figures in zip(("idle", "warm", "end"), states, strict=True):
            print(f"{server.name:20} {when:7}", *(f"{value:11,}" for value in figures))
        it.failures += _broken_bounds(server, clients, *states)
    if it.tally.sent != it.tally.returned:
        it.failures.append(f"of {it.tally.sent} messages {it.tally.returned} came back")
    for server in servers:
        it.failures += await _stop(server)
        it.failures += [f"{server.name} logged: {record}" for record in server.unexpected_records()]
    return it.failures


async def _settled(servers: Sequence[Server], idle: Sequence[Figures]) -> list[Figures]:
    return [await server.settled(before) for server, before in zip(servers, idle, strict=True)]


def _broken_bounds(server: Server, clients: int, idle: Figures, warm: Figures, end: Figures) -> list[str]:
    bounds = Figures(
        tasks=idle.tasks,
        objects=warm.objects + MORE_OBJECTS,
        descriptors=idle.descriptors,
        sockets=idle.sockets,
        rss=warm.rss + clients * MORE_RSS_PER_CLIENT,
    )
    return [
        f"{server.name}: {name} should be {bound:,} at most, and is {value:,}"
        for name, bound, value in zip(Figures._fields, bounds, end, strict=True)
        if value > bound
    ]


async def _stop(server: Server) -> list[str]:
    """Stop the server while a client is connected; return what went wrong."""
    failures = []
    async with connect(server.url("/echo"), ssl_context=server.tls) as websocket:
        started = time.monotonic()
        status = await trio.to_thread.run_sync(server.process.stop)
        seconds = time.monotonic() - started
        try:
            await websocket.recv()
        except ConnectionClosed as closed:
            if closed.code != 1012:
                failures.append(f"{server.name} closed with {closed.code} at SIGTERM, not 1012")
    if status != 0:
        failures.append(f"{server.name} ended with status {status}, not 0")
    if seconds > TIMEOUTS["graceful"] + LIFESPAN_GRACE:
        failures.append(f"{server.name} took {seconds:.1f} s to end")
    return failures


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Soak the server.")
    parser.add_argument("minutes", type=float, help="for how long clients come and go, such as 10, or 0.5")
    parser.add_argument("--clients", type=int, default=200, help="how many at a time (default: 200)")
    parser.add_argument("--seed", default=os.urandom(4).hex(), help="for the clients' choices")
    arguments = parser.parse_args()
    print(f"Soaking for {arguments.minutes:g} minutes with --seed {arguments.seed}", flush=True)
    with running_servers() as servers:
        failures = trio.run(soak, servers, arguments.minutes * 60, arguments.clients, arguments.seed)
    for what, count in Counter(failure.partition("\n")[0] for failure in failures).items():
        print(f"\nFAILED {count} times: {what}")
    for failure in failures[:SHOWN_FAILURES]:
        print(f"\n{failure}")
    if not failures:
        print("\nAll bounds were kept.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
