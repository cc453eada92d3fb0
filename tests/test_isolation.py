"""A fault anywhere in our own code ends the connection that meets it, and no other knows of it."""

from __future__ import annotations

import base64
import itertools
import logging
import sys
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.automatic_peer import CLIENT_CONTEXT, SERVER_CONTEXT, AutomaticPeer
from tests.faults import Faults, Place, places
from tests.protocol import frames
from tests.protocol.frames import close_frame, frame
from trio_ws_server.close_codes import Close
from trio_ws_server.closing import Closing
from trio_ws_server.config import Config
from trio_ws_server.connection import Connection
from trio_ws_server.http1 import HttpConnection
from trio_ws_server.inbox import EVENTS_PER_TURN, Inbox
from trio_ws_server.keepalive import Keepalive, Pings
from trio_ws_server.logs import logger
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.deflate_streams import Compressor, Decompressor
from trio_ws_server.protocol.frames import SHARED_SIZE
from trio_ws_server.protocol.handshake import ServerHandshake
from trio_ws_server.protocol.http1 import Exchange
from trio_ws_server.protocol.payload import Payload
from trio_ws_server.protocol.websocket import WebSocketProtocol
from trio_ws_server.server import Server
from trio_ws_server.serving import serve
from trio_ws_server.transport import Receiver, TLSStream, poller
from trio_ws_server.transport.socket import SocketTransport
from trio_ws_server.transport.stream import StreamTransport
from trio_ws_server.transport.tls import TLS
from trio_ws_server.transport.tls_socket import TLSSocket, TLSTransport
from trio_ws_server.upgrade import Upgrade
from trio_ws_server.websocket import WebSocket

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from pathlib import Path

KIB = 1024


def upgrade(path: str, *, extension: str = "") -> bytes:
    fields = [
        f"GET {path} HTTP/1.1",
        "Host: server.test",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat",
        *([f"Sec-WebSocket-Extensions: {extension}"] if extension else []),
    ]
    return "\r\n".join([*fields, "", ""]).encode()


def deflated(payload: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def compressed(payload: bytes) -> bytes:
    return frame(frames.TEXT, deflated(payload), rsv=4)


TEXT = frame(frames.TEXT, b"hello")
LARGE = frame(frames.BINARY, bytes(SHARED_SIZE + 1))
PING = frame(frames.PING, b"ping")
CLOSE = close_frame(1000)
GET = b"GET /hello HTTP/1.1\r\nHost: server.test\r\n\r\n"
LAST_GET = b"GET /hello HTTP/1.1\r\nHost: server.test\r\nConnection: close\r\n\r\n"


async def handler(websocket: WebSocket, path: str) -> None:
    match path:
        case "/fail":
            raise ValueError("the application's own")
        case "/ping":
            await websocket.ping()
        case "/slow":
            await trio.sleep(1)
    async for message in websocket:
        await websocket.send(message)
        if message == "flood":
            for _ in range(8):
                await websocket.send(bytes(100 * KIB))


async def app(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    first = await receive()
    match scope["type"], scope["path"]:
        case "http", "/fail":
            raise ValueError("the application's own")
        case "http", _:
            while first["more_body"]:
                first = await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-answer", b"42")]})
            body = b"hello" * 100 * KIB if scope["path"] == "/large" else b"hello"
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body"})
        case _, "/unanswered":
            await receive()
        case _, "/refused":
            await send({"type": "websocket.close"})
        case _, "/denied":
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"who are you?"})
        case _:
            await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-answer", b"42")]})
            while (event := await receive())["type"] != "websocket.disconnect":
                if event["text"] == "bye":
                    await send({"type": "websocket.close", "code": 4000, "reason": "bye"})
                else:
                    await send(event | {"type": "websocket.send"})


@dataclass(frozen=True)
class Scenario:
    """What a client does until its connection is over."""

    application: Callable[..., Any]
    sends: tuple[bytes, ...]
    ends: str = "read"
    """What comes then: it reads to the end, ends its own side, vanishes, stalls, or the server shuts down."""
    options: dict[str, Any] = field(default_factory=dict)
    tls: bool = False
    poller: bool = True
    """Whether the platform has the means for one."""


SCENARIOS = {
    "websocket": Scenario(
        handler,
        (
            upgrade("/"),
            TEXT,
            PING,
            frame(frames.TEXT, b"hel", fin=False),
            frame(frames.CONTINUATION, b"lo"),
            frame(frames.PONG, b"pong"),
            LARGE,
            CLOSE,
        ),
    ),
    "websocket with an invalid frame": Scenario(handler, (upgrade("/"), frame(3))),
    "websocket, compressed": Scenario(
        handler,
        (
            upgrade("/", extension="permessage-deflate"),
            compressed(b"hello"),
            frame(frames.TEXT, zlib.compress(b"hello", wbits=-15), rsv=4),
            compressed(b"hello")[:8],
            compressed(b"hello")[8:],
            frame(frames.TEXT, deflated(b"hello")[:3], fin=False, rsv=4),
            frame(frames.CONTINUATION, deflated(b"hello")[3:]),
            compressed(b"hello" * 60 * KIB),
            CLOSE,
        ),
        options={"per_message_deflate": True, "deflate_min_size": 1},
    ),
    "websocket of an ASGI application": Scenario(
        app, (upgrade("/"), TEXT, frame(frames.TEXT, b"bye"), CLOSE)
    ),
    "websocket over TLS": Scenario(app, (upgrade("/"), TEXT, LARGE, CLOSE), tls=True),
    "websocket over TLS, without a poller": Scenario(
        app, (upgrade("/"), TEXT, CLOSE), tls=True, poller=False
    ),
    "denied": Scenario(app, (upgrade("/denied"),)),
    "refused": Scenario(app, (upgrade("/refused"),)),
    "invalid handshake": Scenario(app, (upgrade("/").replace(b"Version: 13", b"Version: 8"),)),
    "http": Scenario(
        app,
        (
            b"POST / HTTP/1.1\r\nHost: server.test\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n" + GET,
            LAST_GET,
        ),
    ),
    "http to a native handler": Scenario(handler, (LAST_GET,)),
    "invalid request": Scenario(app, (b"GET / HTTP/1.1\r\n\r\n",)),
    "idle": Scenario(app, (GET,)),
    "failing handler": Scenario(handler, (upgrade("/fail"), CLOSE)),
    "failing application": Scenario(app, (GET.replace(b"hello", b"fail"),)),
    "handler's ping": Scenario(handler, (upgrade("/ping"), CLOSE)),
    "keepalive": Scenario(
        handler,
        (upgrade("/", extension="permessage-deflate"),),
        options={"ping_interval": 20, "ping_timeout": 20, "per_message_deflate": True},
    ),
    "stalled": Scenario(handler, (upgrade("/"), frame(frames.TEXT, b"flood"), PING, TEXT, CLOSE)),
    "stalled http": Scenario(app, (LAST_GET.replace(b"hello", b"large"),)),
    "full inbox": Scenario(
        handler, (upgrade("/slow"), TEXT * 10, CLOSE), options={"inbox_messages": 2, "ping_interval": 0.25}
    ),
    "more than a turn": Scenario(handler, (upgrade("/"), PING * 2 * EVENTS_PER_TURN + TEXT, CLOSE)),
    "half-closed": Scenario(handler, (upgrade("/"), TEXT), ends="end"),
    "evicted": Scenario(handler, (upgrade("/"), frame(frames.TEXT, b"flood")), ends="stall"),
    "never closing": Scenario(app, (upgrade("/"), frame(frames.TEXT, b"bye")), ends="stall"),
    "vanished": Scenario(handler, (upgrade("/"), frame(frames.TEXT, b"flood"), TEXT[:3]), ends="vanish"),
    "vanished before the answer": Scenario(app, (upgrade("/unanswered"),), ends="vanish"),
    "vanished from http": Scenario(app, (GET, GET[:10]), ends="vanish"),
    "stalled, without a poller": Scenario(
        handler, (upgrade("/"), frame(frames.TEXT, b"flood"), PING, TEXT, CLOSE), poller=False
    ),
    "half-closed, without a poller": Scenario(handler, (upgrade("/"), TEXT), ends="end", poller=False),
    "never closing, without a poller": Scenario(
        app, (upgrade("/"), frame(frames.TEXT, b"bye")), ends="stall", poller=False
    ),
    "vanished, without a poller": Scenario(
        handler, (upgrade("/"), frame(frames.TEXT, b"flood"), TEXT[:3]), ends="vanish", poller=False
    ),
    "full inbox, without a poller": Scenario(
        handler, (upgrade("/slow"), TEXT * 10, CLOSE), options={"inbox_messages": 2}, poller=False
    ),
    "drain": Scenario(handler, (upgrade("/"), TEXT), ends="drain"),
    "drain of http": Scenario(app, (GET, GET[:10]), ends="drain"),
}

FAILURES: list[Callable[[], Exception]] = [
    lambda: KeyError("injected"),
    lambda: RecursionError("injected"),
    lambda: MemoryError("injected"),
    lambda: AttributeError("injected"),
    lambda: ExceptionGroup("injected", [ValueError("injected"), TypeError("injected")]),
]

NOT_OF_A_SERVER = {
    "Deflate.offer",
    "Deflate.finalize",
    "TLSStream.wait_send_all_might_not_block",
}
"""What the client alone calls, or only `trio.abc.Stream` or wsproto's `Extension` asks for."""

VICTIM = 2
"""The first connection is the bystander's."""

THE_GUARD = {Place(Server, "_serve"), Place(Connection, "is_websocket")}
"""What confines faults cannot be faulty itself, nor what looks at one attribute to tell when to confine them."""

THE_END = {"SocketTransport._close"}
"""What closes a socket cannot fail every time: it would be for the garbage collector to do."""

THE_LOG = {"Peer.__str__", "logs.escaped", "_Escaped.__init__", "_Escaped.__str__"}
"""What tells of a fault cannot be faulty every time."""


class Log(logging.Handler):
    """Keeps what is logged, and does with a record that cannot be formatted what all but pytest's handlers do."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def tracebacks_of_faults(self) -> list[str]:
        return [error for error in self.errors if "Traceback" in error and "injected" in error]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            if record.levelno >= logging.ERROR:
                self.errors.append(text)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Generator[Log]:
    """Log everything, but not to pytest."""
    handler = Log()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


class Network:
    """A server with a victim and a bystander connected."""

    def __init__(self, scenario: Scenario, path: Path) -> None:
        self._scenario = scenario
        self._path = path

    async def connect(self) -> trio.abc.Stream:
        stream = await trio.open_unix_socket(self._path)
        if not self._scenario.tls:
            return stream
        return trio.SSLStream(stream, CLIENT_CONTEXT, server_hostname="server.test")

    async def open(self, nursery: trio.Nursery) -> AutomaticPeer:
        """Return a well-behaved WebSocket client, which takes part from now on."""
        stream = await self.connect()
        await stream.send_all(upgrade("/"))
        response = b""
        while not response.endswith(b"\r\n\r\n"):
            response += await stream.receive_some()
        peer = AutomaticPeer(stream, client=True)
        nursery.start_soon(peer.run)
        return peer

    async def play(self, stream: trio.abc.Stream, between: Callable[[], Awaitable[None]]) -> None:
        """Be the client of the scenario, to the end of the connection."""
        with suppress(trio.BrokenResourceError):
            for data in self._scenario.sends:
                await stream.send_all(data)
                await between()
            if self._scenario.ends == "end":
                assert isinstance(stream, trio.SocketStream)
                await stream.send_eof()
            if self._scenario.ends == "stall":
                await trio.sleep(Config().write_timeout + 1)
            if self._scenario.ends != "vanish":
                while await stream.receive_some():
                    pass


async def run(scenario: Scenario, path: Path) -> None:
    with pytest.MonkeyPatch.context() as platform:
        if not scenario.poller:
            platform.setattr(poller, "open_selector", lambda: None)
        await play(scenario, path)


async def play(scenario: Scenario, path: Path) -> None:
    """Play the scenario between another connection's messages; see that none of these is lost, and nothing left."""
    network = Network(scenario, path)
    numbers = map(str, itertools.count())
    options = {"ping_interval": None, "access_log": True} | scenario.options
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(
            partial(
                serve,
                scenario.application,
                uds=path,
                lifespan="off",
                tls=SERVER_CONTEXT if scenario.tls else None,
                **options,
            )
        )
        async with trio.open_nursery() as peers:
            bystander = await network.open(peers)
            await bystander.echo(next(numbers))
            await wait_all_tasks_blocked()
            tasks = trio.lowlevel.current_statistics().tasks_living

            async def between() -> None:
                await wait_all_tasks_blocked()
                await bystander.echo(next(numbers))

            with trio.fail_after(100):
                victim = await network.connect()
                async with trio.open_nursery() as playing:
                    playing.start_soon(network.play, victim, between)
                    if scenario.ends == "drain":
                        await wait_all_tasks_blocked()
                        await trio.sleep(1)
                        server.shut_down()
                        asked_to_stop = trio.current_time()
                await trio.aclose_forcefully(victim)
            await wait_all_tasks_blocked()
            if scenario.ends != "drain":
                assert trio.lowlevel.current_statistics().tasks_living == tasks
                await bystander.echo(next(numbers))
                newcomer = await network.open(peers)
                await newcomer.echo("hello")
                server.shut_down()
                asked_to_stop = trio.current_time()
    assert trio.current_time() <= asked_to_stop + (server.graceful_timeout if scenario.ends == "drain" else 0)
    assert bystander.close == Close(1012)
    assert bystander.received == [str(number).encode() for number in range(len(bystander.received))]


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[Place]]:
    """What each scenario calls for its connection, and how often."""
    calls = {}
    path = tmp_path_factory.mktemp("isolation") / "socket"
    with pytest.MonkeyPatch.context() as patches:
        faults = Faults(patches, victim=VICTIM)
        for name, scenario in SCENARIOS.items():
            faults.reset()
            trio.run(run, scenario, path, clock=MockClock(autojump_threshold=0))
            calls[name] = faults.called
    return calls


def test_the_scenarios_reach_all_that_a_connection_is_called_with(reached: dict[str, Counter[Place]]) -> None:
    names = {name for name in vars(Receiver) if not name.startswith("_")}
    of_http = {Place(HttpConnection, name) for name in names}
    of_websocket = {Place(Inbox if name == "data_received" else WebSocket, name) for name in names}
    assert of_http | of_websocket <= set().union(*reached.values())
    of_a_connection = {
        Connection,
        Upgrade,
        Closing,
        Inbox,
        Keepalive,
        Pings,
        SocketTransport,
        StreamTransport,
        TLS,
        TLSSocket,
        TLSStream,
        TLSTransport,
        Compressor,
        Decompressor,
        Deflate,
        Payload,
        ServerHandshake,
        Exchange,
        WebSocketProtocol,
    }
    methods = {place for place in places() if place.owner in of_a_connection}
    missed = {str(place) for place in methods.difference(*reached.values())} - NOT_OF_A_SERVER
    assert not missed, f"no scenario calls {missed}: add one that does"


def tried_in(name: str, reached: dict[str, Counter[Place]]) -> Iterator[tuple[Place, int, Exception]]:
    """Yield what is to fail in a scenario, how often it is called, and how: each in two scenarios, not in all."""
    for place, failure in zip(sorted(reached[name], key=str), itertools.cycle(FAILURES), strict=False):
        if place not in THE_GUARD and name in [other for other in SCENARIOS if place in reached[other]][:2]:
            yield place, reached[name][place], failure()


@contextmanager
def named(place: Place) -> Iterator[None]:
    """Let what goes wrong say where the fault was."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"with a fault in {place}")
        raise


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_fault_in_any_function_ends_its_own_connection_only_and_is_logged_once(
    name: str,
    reached: dict[str, Counter[Place]],
    tmp_path: Path,
    log: Log,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = Faults(monkeypatch, victim=VICTIM)
    for place, _, failure in tried_in(name, reached):
        log.errors.clear()
        faults.reset(place, failure, times=1)
        with named(place):
            await run(SCENARIOS[name], tmp_path / "socket")
        assert faults.raised == 1, place
        assert str(place) in THE_LOG or len(log.tracebacks_of_faults()) == 1, place


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_function_that_fails_on_a_connection_again_and_again_ends_that_only_and_is_logged(
    name: str,
    reached: dict[str, Counter[Place]],
    tmp_path: Path,
    log: Log,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = Faults(monkeypatch, victim=VICTIM)
    for place, calls, failure in tried_in(name, reached):
        if calls > 1 and str(place) not in THE_LOG | THE_END:
            log.errors.clear()
            faults.reset(place, failure, times=sys.maxsize)
            with named(place):
                await run(SCENARIOS[name], tmp_path / "socket")
            assert log.tracebacks_of_faults(), place
