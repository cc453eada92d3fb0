"""
Who gets in: connections counted against the limits, and those beyond them answered with 503.

A connection beyond a limit is served like any other, its TLS handshake included, but by an application that
answers whatever is asked with 503. It has to be: over TLS only a handshake makes way for a response, and a socket
that is closed before the request has been read is reset, which can destroy the response (RFC 9112 section 9.6).
So that they cannot become a burden in turn, these connections get little time, and few of them get it at once; who
comes on top of those is dropped without a word.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

import trio

from trio_ws_server.logs import logger

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from trio_ws_server.config import Config
    from trio_ws_server.headers import RequestHead
    from trio_ws_server.http1 import HttpConnection
    from trio_ws_server.peer import Peer
    from trio_ws_server.upgrade import Upgrade

MAX_REFUSED = 100
"""Connections that are answered with 503 at a time: what there may be of them above the limit."""

REFUSAL_TIMEOUT = 3.0
"""Seconds that a connection has to get its 503, from accept to close: some round trips, even by satellite."""

RETRY_AFTER = 5
"""Seconds after which a client is told to try again."""

REPORT_INTERVAL = 60.0
"""Seconds between log records about connections turned away."""

_IPV6_NETWORK = 64
"""Bits of an IPv6 address that say whose it is: one customer has all addresses of a /64 at least (RFC 6177)."""


class Verdict(Enum):
    """What becomes of a new connection."""

    ADMITTED = "served"
    REFUSED = "answered with 503"
    DROPPED = "closed at once"


class Admission:
    """
    The places of one server: ``limit_connections`` in all, ``limit_connections_per_ip`` for each client address.

    An IPv6 client is counted with its whole /64, any address of which it can take; an IPv4 address mapped into
    IPv6, which a socket for both has, as what it is. A Unix socket's clients have no address, and only the limit in
    all is for them. Behind a proxy every client has the proxy's address.
    """

    def __init__(self, config: Config) -> None:
        self._total = _Limit("--limit-connections", config.limit_connections)
        self._per_ip = _Limit("--limit-connections-per-ip", config.limit_connections_per_ip)
        self._refused = _Limit("", MAX_REFUSED)
        self._turned_away: Counter[Verdict] = Counter()
        """Since the last report."""
        self._last = ""
        """The last one turned away, for the report."""
        self._next_report = -math.inf

    def place(self, peer: Peer) -> Place:
        """Decide on a new connection; what place it gets is taken for the length of a ``with``."""
        places: list[tuple[_Limit, Hashable]] = []
        if self._total.most is not None:
            places.append((self._total, None))
        if self._per_ip.most is not None and peer.client is not None:
            places.append((self._per_ip, _counted_as(peer.client[0])))
        verdict = Verdict.ADMITTED
        if reached := next((limit for limit, holder in places if limit.reached(holder)), None):
            if self._refused.reached(None):
                verdict, places = Verdict.DROPPED, []
            else:
                verdict, places = Verdict.REFUSED, [(self._refused, None)]
            self._turned_away[verdict] += 1
            self._last = f"{peer}, beyond {reached.option} {reached.most}"
            self.report_if_due()
        return Place(self, verdict, tuple(places))

    def report_if_due(self) -> None:
        """Log how many have been turned away, if any have been since the last time, and that was long ago."""
        if not self._turned_away:
            return
        now = trio.current_time()
        if now < self._next_report:
            return
        logger.warning(
            "Answered %d connections with 503 and dropped %d; the last was %s",
            self._turned_away[Verdict.REFUSED],
            self._turned_away[Verdict.DROPPED],
            self._last,
        )
        self._turned_away.clear()
        self._next_report = now + REPORT_INTERVAL


class Place:
    """What a connection has of the limits, for the length of a ``with``; a generator would take 500 bytes more."""

    __slots__ = ("_admission", "_taken", "_verdict")

    def __init__(
        self, admission: Admission, verdict: Verdict, taken: Sequence[tuple[_Limit, Hashable]]
    ) -> None:
        self._admission = admission
        self._verdict = verdict
        self._taken = taken

    def __enter__(self) -> Verdict:
        for limit, holder in self._taken:
            limit.take(holder)
        return self._verdict

    def __exit__(self, *_: object) -> None:
        for limit, holder in self._taken:
            limit.give_back(holder)
        # Here too, so that the end of a flood is reported without another one.
        self._admission.report_if_due()


class Unavailable:
    """The application that connections beyond a limit get."""

    async def http(self, connection: HttpConnection, request: RequestHead, peer: Peer) -> None:
        """Answer with 503."""
        await connection.respond(
            HTTPStatus.SERVICE_UNAVAILABLE,
            [(b"retry-after", str(RETRY_AFTER).encode())],
            b"Too many connections: try again later\n",
            close=True,
        )

    async def websocket(self, upgrade: Upgrade) -> None:
        """Answer with 503 instead of accepting."""
        await self.http(upgrade.http, upgrade.request, upgrade.peer)


class _Limit:
    """So many places for each holder; without limit where that is None."""

    def __init__(self, option: str, most: int | None) -> None:
        self.option = option
        self.most = most
        self._taken: Counter[Hashable] = Counter()

    def reached(self, holder: Hashable) -> bool:
        return self.most is not None and self._taken[holder] >= self.most

    def take(self, holder: Hashable) -> None:
        self._taken[holder] += 1

    def give_back(self, holder: Hashable) -> None:
        self._taken[holder] -= 1
        if not self._taken[holder]:
            del self._taken[holder]


def _counted_as(host: str) -> Hashable:
    """Return what all addresses of one client have in common."""
    address = ip_address(host)
    if not isinstance(address, IPv6Address):
        return address
    return address.ipv4_mapped or int(address) >> (address.max_prefixlen - _IPV6_NETWORK)
