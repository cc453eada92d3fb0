"""What the command line of a peer says."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class Arguments:
    """
    ``APP PORT COMPRESSION [PING_INTERVAL]``: echo or fan-out; a port of 127.0.0.1; deflate or off; seconds.

    Without the last, and where a server has no such setting, it sends the pings that it does by itself.
    """

    fan_out: bool
    port: int
    deflate: bool
    ping_interval: float | None = None

    @classmethod
    def parse(cls) -> Arguments:
        """Return what this program was called with."""
        app, port, compression, *pings = sys.argv[1:]
        return cls(app == "fan-out", int(port), compression == "deflate", *map(float, pings))

    @property
    def of_websockets(self) -> dict[str, Any]:
        """What ``serve`` of websockets is told of this."""
        pings = {} if self.ping_interval is None else {"ping_interval": self.ping_interval}
        return {"compression": "deflate" if self.deflate else None} | pings
