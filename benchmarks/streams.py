"""
The command line of ``trio-ws-server`` as on a platform that has neither epoll nor kqueue.

Called ``python -m benchmarks.streams``, with the same options.
"""

from __future__ import annotations

from trio_ws_server import cli
from trio_ws_server.transport import poller


def take_poller_away() -> None:
    """Let the servers of this process find no selector, so that plain sockets go through the stream transport."""
    poller.open_selector = lambda: None


if __name__ == "__main__":
    take_poller_away()
    cli.main()
