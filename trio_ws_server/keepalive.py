"""
Keepalive: pings at intervals, and the end of a connection whose peer shows no sign of life.

What has been sent is in `Pings`, `Keepalive` decides what its answer, or silence, means. It needs no task: it is
called at its times.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from trio_ws_server.transport.base import LOOKS_PER_TIMEOUT

if TYPE_CHECKING:
    from trio_ws_server.config import Config
    from trio_ws_server.transport import Timer, Transport


LOOKS_PER_SECOND = 20
"""Times at which pings are sent and missed: thousands of connections share the wake-ups of the process."""


@dataclass(slots=True)
class SentPing:
    """A ping, and when its pong came."""

    payload: bytes
    sent_at: float
    answered_at: float | None = None


class Pings:
    """The pings of a connection that are not answered, in the order in which they were sent."""

    __slots__ = ("_sent",)

    def __init__(self) -> None:
        self._sent: dict[bytes, SentPing] = {}

    def __contains__(self, payload: bytes) -> bool:
        """Whether a ping with this payload still waits for its pong."""
        return payload in self._sent

    def fresh_payload(self) -> bytes:
        """Return four random bytes that no unanswered ping has."""
        while (payload := os.urandom(4)) in self._sent:
            pass
        return payload

    def sent(self, payload: bytes) -> SentPing:
        """Take note of a ping that is sent now."""
        ping = self._sent[payload] = SentPing(payload, trio.current_time())
        return ping

    def answered(self, payload: bytes) -> bool:
        """
        Take note of a pong; return whether it answers a ping, and with it all before that.

        RFC 6455 section 5.5.3 allows a peer to answer only the latest of several.
        """
        if payload not in self._sent:
            return False
        for earlier in list(self._sent):
            self._sent.pop(earlier).answered_at = trio.current_time()
            if earlier == payload:
                break
        if not self._sent:
            # What a dict has got for what it held, it keeps when it is empty: 120 bytes of each idle connection.
            self._sent = {}
        return True

    def forget(self, ping: SentPing) -> None:
        """Wait for the answer no more. One that is answered is not there any more, and another may be."""
        if self._sent.get(ping.payload) is ping:
            del self._sent[ping.payload]


class Monitored(Protocol):
    """A connection, as its keepalive knows it."""

    @property
    def listening(self) -> bool:
        """Whether all that the peer sends is taken at once, so that its silence tells something."""

    @property
    def listening_since(self) -> float:
        """Before this time, nothing of what the peer sent may have been taken."""

    def send_ping(self) -> SentPing | None:
        """Send a ping; None where the connection is no longer open."""

    def repeat_ping(self, ping: SentPing) -> None:
        """Send a ping again that is not answered."""

    def ping_timed_out(self) -> None:
        """Fail the connection."""


class Keepalive:
    """
    Sends a ping ``ping_interval`` seconds after the last one was answered, and gives it ``ping_timeout`` seconds.
    While there is nothing to be learned from its answer, it is repeated: proxies, too, drop what seems idle.

    Any byte from the peer is a sign of life: one in the middle of a long message cannot answer before its end. So
    is taking what was sent before the ping. While our own application lets the inbox be full, or what has been read
    waits for its turn, silence tells nothing.
    """

    __slots__ = (
        "_connection",
        "_interval",
        "_mark",
        "_ping",
        "_taken_at",
        "_timeout",
        "_timer",
        "_transport",
    )

    def __init__(self, connection: Monitored, transport: Transport, config: Config) -> None:
        self._connection: Monitored | None = connection
        self._transport = transport
        self._interval = config.ping_interval
        self._timeout = math.inf if config.ping_timeout is None else config.ping_timeout
        self._timer: Timer | None = None
        self._ping: SentPing | None = None
        self._mark: int | None = None
        self._taken_at = 0.0
        if self._interval is not None:
            self._call_at(trio.current_time() + self._interval)

    def stop(self) -> None:
        """Send no more pings, and let go of the connection, which holds this."""
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()

    def _call_at(self, time: float) -> None:
        due = math.ceil(time * LOOKS_PER_SECOND) / LOOKS_PER_SECOND
        self._timer = self._transport.call_at(due, self._look)

    def _look(self) -> None:
        """Do what is due, and say when to look again."""
        assert self._interval is not None
        if self._ping is not None and self._ping.answered_at is None:
            self._transport.look()
        connection = self._connection
        if connection is None:
            # What has come was its end.
            return
        now = trio.current_time()
        if self._ping is None:
            self._send_ping(connection, now)
        elif self._ping.answered_at is None:
            self._wait_for_pong(connection, now)
        elif self._ping.answered_at + self._interval <= now:
            self._send_ping(connection, now)
        else:
            self._call_at(self._ping.answered_at + self._interval)

    def _send_ping(self, connection: Monitored, now: float) -> None:
        transport = self._transport
        transport.see_taken()
        self._mark = transport.written if transport.taken < transport.written else None
        self._taken_at = now
        self._ping = connection.send_ping()
        if self._ping is not None:
            self._look_again(now + self._timeout, now)

    def _wait_for_pong(self, connection: Monitored, now: float) -> None:
        if self._mark is not None and self._transport.taken_at > self._taken_at:
            self._taken_at = self._transport.taken_at
            if self._transport.taken >= self._mark:
                self._mark = None
        heard_at = max(self._transport.received_at, connection.listening_since)
        deadline = max(self._taken_at, heard_at) + self._timeout
        if not connection.listening:
            deadline = now + self._timeout
        if deadline <= now:
            connection.ping_timed_out()
            return
        if deadline == math.inf or not connection.listening:
            self._repeat_ping(connection, now)
        self._look_again(deadline, now)

    def _repeat_ping(self, connection: Monitored, now: float) -> None:
        assert self._interval is not None
        assert self._ping is not None
        if self._ping.sent_at + self._interval <= now:
            connection.repeat_ping(self._ping)

    def _look_again(self, deadline: float, now: float) -> None:
        """Look at the deadline, or earlier if the next ping can be due, or more can have been taken, before it."""
        assert self._interval is not None
        to_be_seen = math.inf if self._mark is None else self._timeout / LOOKS_PER_TIMEOUT
        self._call_at(min(deadline, now + self._interval, now + to_be_seen))
