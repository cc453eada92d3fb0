"""websockets on Trio."""

from __future__ import annotations

from functools import partial

import trio
from websockets.trio.server import serve

from benchmarks.apps import native_echo, native_fan_out
from benchmarks.peers.arguments import Arguments

if __name__ == "__main__":
    arguments = Arguments.parse()
    handler = native_fan_out if arguments.fan_out else native_echo
    trio.run(partial(serve, handler, arguments.port, host="127.0.0.1", **arguments.of_websockets))
