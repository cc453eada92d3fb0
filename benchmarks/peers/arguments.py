"""What the command line of a peer says."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass
class Arguments:
    """``APP PORT COMPRESSION``: echo or fan-out; a port of 127.0.0.1; deflate or off."""

    fan_out: bool
    port: int
    deflate: bool

    @classmethod
    def parse(cls) -> Arguments:
        """Return what this program was called with."""
        app, port, compression = sys.argv[1:]
        return cls(app == "fan-out", int(port), compression == "deflate")
