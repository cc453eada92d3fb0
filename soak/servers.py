"""The servers of the soak: how they are started and reached, and what they hold."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
import trustme

from tests.e2e.helpers import REPOSITORY, ServerProcess, running
from trio_ws_server import connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

MAX_MESSAGE_SIZE = 256 * 1024

TIMEOUTS = {
    "handshake": 10,
    "keep-alive": 10,
    "body": 6,
    "write": 10,
    "ws-ping": 10,
    "ws-close": 10,
    "graceful": 10,
}
"""Seconds. No longer than a run for CI, but long enough for the well-behaved on a machine with much else to do."""

PING_INTERVAL = 4

PATIENCE = 60.0
"""Seconds in which a server ends a connection, whatever its client does or leaves: all of the above together."""

_OPTIONS = [
    *(argument for name, seconds in TIMEOUTS.items() for argument in (f"--{name}-timeout", str(seconds))),
    *("--ws-ping-interval", str(PING_INTERVAL)),
    *("--ws-max-message-size", str(MAX_MESSAGE_SIZE)),
]

_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ )", re.MULTILINE)


class Figures(NamedTuple):
    """What a server's process holds."""

    tasks: int
    objects: int
    """That the garbage collector knows, after a collection."""
    descriptors: int
    sockets: int
    rss: int
    """KiB."""


class Line(NamedTuple):
    """A connection to a server, with or without TLS, and the TCP connection under it."""

    stream: trio.abc.Stream
    tcp: trio.SocketStream

    async def reset(self) -> None:
        """Drop the connection, and tell the server so with a TCP segment that has RST."""
        self.tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.tcp.aclose()

    async def ended(self) -> None:
        """Read until the server ends the connection; raises ``trio.TooSlowError`` if it does not in time."""
        with trio.fail_after(PATIENCE):
            try:
                while await self.stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    process: ServerProcess
    asgi: bool
    deflate: bool
    tls: ssl.SSLContext | None
    """For clients; None where the server speaks none."""

    def url(self, path: str) -> str:
        """Return the URL of a path, for WebSocket clients."""
        return self.process.url.replace("http", "ws", 1).replace("127.0.0.1", "localhost") + path

    @asynccontextmanager
    async def dial(self) -> AsyncGenerator[Line]:
        """Make a TCP connection, and TLS on it where the server speaks it; drop it at the end."""
        tcp = await trio.open_tcp_stream(*self.process.address)
        try:
            if self.tls is None:
                yield Line(tcp, tcp)
            else:
                stream = trio.SSLStream(tcp, self.tls, server_hostname="localhost", https_compatible=True)
                await stream.do_handshake()
                yield Line(stream, tcp)
        finally:
            await trio.aclose_forcefully(tcp)

    def descriptors(self) -> list[str]:
        """Return what each open descriptor is; one that was closed just now is nothing."""
        directory = f"/proc/{self.process.pid}/fd"
        targets = []
        for number in os.listdir(directory):
            with suppress(FileNotFoundError):
                targets.append(os.readlink(f"{directory}/{number}"))
        return targets

    async def settled(self, idle: Figures) -> Figures:
        """
        Return what the process holds once it has no more descriptors and tasks than when idle.

        Waits for that for `PATIENCE` at most: a handler that does something else meanwhile outlives its client.
        """
        for _ in range(int(PATIENCE / 0.1)):
            if len(self.descriptors()) <= idle.descriptors:
                figures = await self.figures()
                if figures.tasks <= idle.tasks:
                    return figures
            await trio.sleep(0.1)
        return await self.figures()

    async def figures(self) -> Figures:
        """Return what the process holds, but for the connection that this makes to ask it."""
        descriptors = self.descriptors()
        sockets = sum(target.startswith("socket:") for target in descriptors)
        rss = self._status("VmRSS")
        async with connect(self.url("/statistics"), ssl_context=self.tls) as websocket:
            statistics: dict[str, Any] = json.loads(await websocket.recv())
        return Figures(**statistics, descriptors=len(descriptors), sockets=sockets, rss=rss)

    def peak_rss(self) -> int:
        """Return the most memory, in KiB, that was resident at any time."""
        return self._status("VmHWM")

    def unexpected_records(self) -> list[str]:
        """Return what the server has logged, and nobody provoked: warnings, errors, and all that is no record."""
        _, *records = _RECORD.split(f"\n{self.process.log}")
        return [record for record in records if not _is_expected(record)]

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0])


def _is_expected(record: str) -> bool:
    first, _, rest = record.strip().partition("\n")
    level = first.split()[2]
    if level == "ERROR":
        return first.endswith("exception in the application") and "soak.apps.Provoked" in rest
    return level in ("INFO", "DEBUG") and not rest


@contextmanager
def running_servers() -> Iterator[list[Server]]:
    """Run the servers: each kind of application with each of TLS and permessage-deflate, or without."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with TemporaryDirectory() as directory, ExitStack() as stack:
        certificate = Path(directory, "localhost.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        servers = []
        for asgi, tls, deflate in (
            (True, False, True),
            (True, True, False),
            (False, False, False),
            (False, True, True),
        ):
            arguments = [*_OPTIONS]
            if tls:
                arguments += ["--ssl-certfile", str(certificate)]
            if deflate:
                arguments.append("--ws-per-message-deflate")
            name = " ".join(["ASGI" if asgi else "native", *["TLS"] * tls, *["deflate"] * deflate])
            arguments += ["soak.apps:app"] if asgi else ["--native", "soak.apps:handler"]
            process = stack.enter_context(running(*arguments, cwd=REPOSITORY))
            servers.append(Server(name, process, asgi, deflate, context if tls else None))
        yield servers
