"""Our server as people run it: a process of its own, on a port of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).parents[2]
APPS = Path(__file__).parent
"""Where ``apps.py`` is, the applications that these tests serve."""

DEADLINE = 20.0
"""Seconds, for anything that a process or a peer is waited for."""

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("TRIO_WS_SERVER_")},
    "PYTHONPATH": str(REPOSITORY),
}
"""For processes that import this package, installed or not."""

_LISTENING = re.compile(r"Listening on (\S+) \(Trio ")


class ServerProcess:
    """A running ``trio-ws-server``: its addresses, its output, its end."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trio_ws_server", *arguments],
            cwd=cwd,
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            text=True,
        )
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written to standard error so far."""
        return "".join(self._lines)

    @property
    def urls(self) -> list[str]:
        """The addresses that the server says it listens on."""
        return _LISTENING.findall(self.log)

    @property
    def url(self) -> str:
        """The one address."""
        (url,) = self.urls
        return url

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the one address."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the server's output holds the text, so many times."""
        with self._changed:
            self._changed.wait_for(lambda: self.log.count(text) >= times or self._ended, DEADLINE)
        assert self.log.count(text) >= times, f"not {times} {text!r} in the server's output:\n{self.log}"

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the process to end by itself; return its exit status. The output is complete then."""
        status = self._process.wait(DEADLINE)
        self._reader.join()
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, and do as `wait` does."""
        self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """Make sure that nothing is left of it."""
        self._process.kill()
        self.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def connect(self) -> socket.socket:
        """Open a TCP connection to the one address."""
        return socket.create_connection(self.address, DEADLINE)


@contextmanager
def starting(
    *arguments: str,
    cwd: Path = APPS,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[ServerProcess]:
    """Start ``trio-ws-server`` with these arguments; make sure that it is gone at the end."""
    server = ServerProcess(arguments, cwd=cwd, environment=environment or {}, pass_fds=pass_fds)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def running(
    *arguments: str,
    cwd: Path = APPS,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[ServerProcess]:
    """As `starting`, on a free port unless told otherwise; wait until it listens."""
    environment = {"TRIO_WS_SERVER_PORT": "0", **(environment or {})}
    with starting(*arguments, cwd=cwd, environment=environment, pass_fds=pass_fds) as server:
        server.wait_for("Listening on ")
        yield server


def receive_all(connection: socket.socket) -> bytes:
    """Return what arrives up to the end of the peer's side; a reset is an error."""
    received = bytearray()
    while data := connection.recv(65536):
        received += data
    return bytes(received)
