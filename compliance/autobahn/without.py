"""
Our server or client as where something is missing: `without.py WHAT PROGRAM ARGUMENT...`, run as a module.

WHAT is ``poller``, where the platform has neither epoll nor kqueue, and sockets go through the stream transport;
``masking``, where the C function for masks is not installed; or both, with a comma between. PROGRAM is ``server``,
the command line, or ``client``.
"""

from __future__ import annotations

import importlib
import runpy
import sys

_PROGRAMS = {"server": "trio_ws_server", "client": "compliance.autobahn.client"}


def take_away(what: str) -> None:
    """Take it away from this process, which must not have imported our package yet."""
    missing = what.split(",")
    if "masking" in missing:
        # As the import system has what cannot be imported.
        sys.modules["websockets.speedups"] = None  # type: ignore[assignment]
    if "poller" in missing:
        importlib.import_module("benchmarks.streams").take_poller_away()


if __name__ == "__main__":
    _what, _program, *_arguments = sys.argv[1:]
    take_away(_what)
    sys.argv[1:] = _arguments
    runpy.run_module(_PROGRAMS[_program], run_name="__main__", alter_sys=True)
