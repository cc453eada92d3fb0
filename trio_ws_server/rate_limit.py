"""How many messages a peer may send in a time."""

from __future__ import annotations


class RateLimit:
    """
    A token bucket: so many events a second in the long run, and as many at once as a second allows.

    Times are in seconds, of one clock.
    """

    __slots__ = ("_allowance", "_per_second", "_seen_at")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._allowance = float(per_second)
        self._seen_at: float | None = None

    def allows(self, now: float) -> bool:
        """Count one event; return whether it is within the limit."""
        if self._seen_at is not None:
            regained = (now - self._seen_at) * self._per_second
            self._allowance = min(self._allowance + regained, self._per_second)
        self._seen_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
