"""How many messages a peer may send in a time."""

from __future__ import annotations


class RateLimit:
    """
    A token bucket: so many events a second in the long run, and as many at once as a second allows.

    What came in a time that is excused may come at once as well. Times are in seconds, of one clock.
    """

    __slots__ = ("_allowance", "_per_second", "_seen_at")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._allowance = float(per_second)
        self._seen_at: float | None = None

    def allows(self, now: float) -> bool:
        """Count one event; return whether it is within the limit."""
        if self._seen_at is not None:
            regained = min(self._allowance + (now - self._seen_at) * self._per_second, self._per_second)
            self._allowance = max(self._allowance, regained)
        self._seen_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def excuse(self, seconds: float) -> None:
        """Allow once what may come in so many seconds, in which nobody looked at what came."""
        self._allowance += seconds * self._per_second
