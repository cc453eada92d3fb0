"""The servers: how each is started, with what suits it best on one core."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.programs import ECHO

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.works import Work

_PROGRAMS = Path(sys.executable).parent
_COMMAND = f"{_PROGRAMS}/trio-ws-server"
_APPS = "benchmarks.apps"


@dataclass(frozen=True)
class Server:
    """A server, and the distributions whose versions tell what it is."""

    name: str
    title: str
    distributions: tuple[str, ...]
    command: Callable[[Work, int], list[str]]
    """What starts it for a work, on a port of 127.0.0.1."""
    has_deflate: bool = True


def _ours(*program: str, native: bool = False) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        app = f"{_APPS}:{'native_' * native}{work.app.replace('-', '_')}"
        deflate = "--ws-per-message-deflate" if work.deflate else "--no-ws-per-message-deflate"
        return [
            *program, "--port", str(port), "--log-level", "warning", "--no-access-log", "--lifespan", "off",
            deflate, *_pings(work), *("--native",) * native, app,
        ]  # fmt: skip

    return command


def _uvicorn(protocol: str) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        return [
            f"{_PROGRAMS}/uvicorn", "--port", str(port), "--loop", "uvloop", "--http", "httptools",
            "--ws", protocol, "--ws-per-message-deflate", str(work.deflate), "--lifespan", "off",
            "--log-level", "warning", "--no-access-log", *_pings(work), _asgi_app(work),
        ]  # fmt: skip

    return command


def _granian(work: Work, port: int) -> list[str]:
    return [
        f"{_PROGRAMS}/granian", "--port", str(port), "--interface", "asginl", "--http", "1", "--ws",
        "--loop", "uvloop", "--workers", "1", "--runtime-mode", "st", "--runtime-threads", "1",
        "--backpressure", "4096", "--log-level", "warning", "--no-access-log", _asgi_app(work),
    ]  # fmt: skip


def _hypercorn(work: Work, port: int) -> list[str]:
    return [
        f"{_PROGRAMS}/hypercorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "trio", "--workers", "0",
        "--log-level", "warning", _asgi_app(work),
    ]  # fmt: skip


def _pings(work: Work) -> list[str]:
    return [] if work.ping_interval is None else ["--ws-ping-interval", str(work.ping_interval)]


def _asgi_app(work: Work) -> str:
    return f"{_APPS}:{work.app.replace('-', '_')}"


def _peer(name: str) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        compression = "deflate" if work.deflate else "off"
        pings = [] if work.ping_interval is None else [str(work.ping_interval)]
        return [sys.executable, "-m", f"benchmarks.peers.{name}", work.app, str(port), compression, *pings]

    return command


def _least(api: str) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        compression = "deflate" if work.deflate else "off"
        return [sys.executable, "-m", "benchmarks.least", api, work.app, str(port), compression]

    return command


def _yardstick(_work: Work, port: int) -> list[str]:
    return [str(ECHO), str(port)]


SERVERS = {
    server.name: server
    for server in [
        Server("asgi", "trio-ws-server, ASGI", ("trio-ws-server", "trio"), _ours(_COMMAND)),
        Server("native", "trio-ws-server, native", ("trio-ws-server", "trio"), _ours(_COMMAND, native=True)),
        Server(
            "streams",
            "trio-ws-server, ASGI, over streams",
            ("trio-ws-server", "trio"),
            _ours(sys.executable, "-m", "benchmarks.streams"),
        ),
        Server(
            "uvicorn-websockets",
            "uvicorn + uvloop, websockets",
            ("uvicorn", "uvloop", "httptools", "websockets"),
            _uvicorn("websockets"),
        ),
        Server(
            "uvicorn-sansio",
            "uvicorn + uvloop, websockets-sansio",
            ("uvicorn", "uvloop", "httptools", "websockets"),
            _uvicorn("websockets-sansio"),
        ),
        Server("granian", "granian", ("granian", "uvloop"), _granian, has_deflate=False),
        Server("hypercorn", "hypercorn on Trio", ("hypercorn", "trio", "wsproto"), _hypercorn),
        Server("websockets-trio", "websockets.trio", ("websockets", "trio"), _peer("websockets_trio")),
        Server(
            "trio-websocket",
            "trio-websocket",
            ("trio-websocket", "trio", "wsproto"),
            _peer("trio_websocket"),
            has_deflate=False,
        ),
        Server(
            "websockets-uvloop", "websockets + uvloop", ("websockets", "uvloop"), _peer("websockets_uvloop")
        ),
        Server("picows", "picows + uvloop", ("picows", "uvloop"), _peer("picows"), has_deflate=False),
        Server("least", "the least on Trio, ASGI", ("trio", "h11", "websockets"), _least("asgi")),
        Server("least-native", "the least on Trio, native", ("trio", "h11", "websockets"), _least("native")),
        Server("c", "C on epoll", (), _yardstick, has_deflate=False),
    ]
}
"""By name."""
