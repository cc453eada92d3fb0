"""Each request and WebSocket connection has its lines in the log, each of them one line."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

import trio_ws_server
from tests.helpers import PEER, Client, asgi, serving
from trio_ws_server.asgi.lifespan import run_lifespan
from trio_ws_server.config import Config
from trio_ws_server.errors import ClientDisconnected
from trio_ws_server.headers import RequestHead
from trio_ws_server.logs import configure, escaped, log_request, logger
from trio_ws_server.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio.testing import MockClock


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await trio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"Hel", "more_body": True})
    await send({"type": "http.response.body", "body": b"lo"})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    await receive()
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def close_with_4000(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000, "reason": "full\nhouse"})


async def deny(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.close"})


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "trio_ws_server.access"]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="trio_ws_server")


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("GET", '192.0.2.1:4000 "GET /a%20b?c HTTP/1.1" 200 5 bytes in 1500.0 ms'),
        ("HEAD", '192.0.2.1:4000 "HEAD /a%20b?c HTTP/1.1" 200 0 bytes in 1500.0 ms'),
    ],
)
async def test_a_request_is_one_line(
    method: str, line: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with serving(asgi(hello), config=Config()) as client:
        await client.request("/a%20b?c", method=method)
    assert access_lines(caplog) == [line]


async def test_each_request_of_a_connection_is_a_line(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with serving(asgi(hello), config=Config()) as client:
        for target in ("/1", "/2"):
            await client.request(target)
    assert [line.split()[2] for line in access_lines(caplog)] == ["/1", "/2"]


def test_a_request_without_a_response_says_so(caplog: pytest.LogCaptureFixture) -> None:
    request = RequestHead(b"GET", b"/", b"1.1", [(b"host", b"a")])
    log_request(PEER, request, status=None, complete=False, body_sent=0, seconds=0.5)
    assert access_lines(caplog) == ['192.0.2.1:4000 "GET / HTTP/1.1" no response 0 bytes in 500.0 ms']


def test_a_response_that_is_cut_off_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    request = RequestHead(b"GET", b"/", b"1.1", [(b"host", b"a")])
    log_request(PEER, request, status=200, complete=False, body_sent=7, seconds=0.5)
    assert access_lines(caplog) == ['192.0.2.1:4000 "GET / HTTP/1.1" 200 7 bytes, cut off in 500.0 ms']


async def test_a_request_that_is_cancelled_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with serving(asgi(wait), config=Config()) as client:
            await client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    [line] = access_lines(caplog)
    assert '"GET /slow HTTP/1.1" no response' in line


async def test_a_request_that_is_none_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(asgi(hello), config=Config()) as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await client.receive_all()
    [line] = access_lines(caplog)
    assert line.startswith("192.0.2.1:4000 refused with 400: ")


@pytest.mark.parametrize(
    ("subprotocols", "line"),
    [
        ([], '192.0.2.1:4000 "WebSocket /chat?room=1" accepted'),
        (["v1"], '192.0.2.1:4000 "WebSocket /chat?room=1" accepted, subprotocol v1'),
    ],
)
async def test_a_websocket_has_a_line_when_it_is_accepted(
    subprotocols: list[str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(asgi(echo), config=Config()) as client:
        await client.open("/chat?room=1", subprotocols=subprotocols)
        assert access_lines(caplog) == [line]


async def closed_by_the_client(client: Client) -> None:
    await client.send_event(TextMessage("héllo"))
    await client.event()
    await client.send_event(BytesMessage(b"12", message_finished=False))
    await client.send_event(Ping(b"not counted"))
    await client.event()
    await client.send_event(BytesMessage(b"34"))
    await client.event()
    await trio.sleep(2.5)
    await client.send_event(CloseConnection(code=1001, reason='the "end"\nof it'))
    await client.receive_all()


async def closed_by_the_server(client: Client) -> None:
    event = await client.event()
    assert isinstance(event, CloseConnection)
    await client.send_event(event.response())
    await client.receive_all()


async def closed_for_an_error(client: Client) -> None:
    await client.send(b"\x83\x80\0\0\0\0")
    await client.receive_all()


async def lost(client: Client) -> None:
    await client.stream.aclose()


@pytest.mark.parametrize(
    ("app", "end", "line"),
    [
        (
            echo,
            closed_by_the_client,
            "closed by the client with 1001 'the \"end\"\\nof it' after 2.500 s; "
            "received 2 messages, 10 bytes; sent 2 messages, 10 bytes",
        ),
        (
            close_with_4000,
            closed_by_the_server,
            "closed by the server with 4000 'full\\nhouse' after 0.000 s; "
            "received 0 messages, 0 bytes; sent 0 messages, 0 bytes",
        ),
        (echo, closed_for_an_error, "closed by the server for a protocol error with 1002 "),
        (echo, lost, "lost with 1006 after 0.000 s; received 0 messages, 0 bytes; "),
    ],
)
async def test_the_end_of_a_websocket_is_one_line_that_tells_how_long_it_was_and_what_it_carried(
    app: Callable[..., Any],
    end: Callable[[Client], Awaitable[None]],
    line: str,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    async with serving(asgi(app), config=Config()) as client:
        await client.open("/chat")
        await end(client)
    _accepted, ended = access_lines(caplog)
    assert ended.startswith(f'192.0.2.1:4000 "WebSocket /chat" {line}')
    assert "\n" not in ended


async def test_a_websocket_that_is_cancelled_has_its_line_too(caplog: pytest.LogCaptureFixture) -> None:
    with trio.CancelScope() as scope:
        async with serving(asgi(echo), config=Config()) as client:
            await client.open()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    _accepted, ended = access_lines(caplog)
    assert '"WebSocket /" lost with 1006 after ' in ended or '"WebSocket /" dropped with 1006 after ' in ended


async def test_a_denied_websocket_is_one_line_like_any_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(asgi(deny), config=Config()) as client:
        await client.open("/chat")
    [line] = access_lines(caplog)
    assert line.startswith('192.0.2.1:4000 "GET /chat HTTP/1.1" 403 ')


async def test_the_access_log_can_be_turned_off(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    for app in (hello, echo, deny):
        async with serving(asgi(app), config=Config(access_log=False)) as client:
            await (client.request() if app is hello else client.open())
    async with serving(asgi(hello), config=Config(access_log=False)) as client:
        await client.send(b"nonsense\r\n\r\n")
        await client.receive_all()
    assert access_lines(caplog) == []


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (PEER, "192.0.2.1:4000"),
        (Peer(("2001:db8::1", 4000), ("2001:db8::2", 80)), "[2001:db8::1]:4000"),
        (Peer(None, ("/run/chat.sock", None)), "unix"),
        (Peer(None, None), "unknown"),
        (Peer(None, ("192.0.2.2", 80)), "unknown"),
    ],
)
def test_a_client_is_named_by_its_address_where_it_has_one(peer: Peer, name: str) -> None:
    assert str(peer) == name


def test_logs_go_to_standard_error_from_the_level_on_that_is_configured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a program that has not set up logging; pytest has.
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    configure("warning")
    configure("warning")
    logging.getLogger("trio_ws_server.access").info("too little")
    logger.warning("enough of %s", "it")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" WARNING enough of it\n")
    assert err.count("\n") == 1


def test_a_program_that_has_set_up_logging_keeps_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    configure("debug")
    assert logger.handlers == []
    assert logger.getEffectiveLevel() == logging.DEBUG


# What peers and applications say

FORGED = "1970-01-01 INFO trio_ws_server all is well"
NASTY = f"\r\n{FORGED}\n{FORGED}\x1b[2J\0\x08\x7f\x85\x9b31m\u2028{FORGED}\u2029\u202e\ufeff"


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The lines that a program gets whose logging has a handler and a format of its own, from debug on."""
    caplog.set_level(logging.DEBUG, logger="trio_ws_server")
    output = io.StringIO(newline="")
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("LOG %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    yield lambda: output.getvalue().split("\n")[:-1]
    logging.getLogger().removeHandler(handler)


def check(lines: list[str]) -> str:
    """Check that each line is one of ours, with nothing in it but text; return them all."""
    assert lines
    for line in lines:
        assert line.isprintable(), repr(line)
        assert line.startswith(("LOG ", "  ", "Traceback (most recent call last):")), line
    return "\n".join(lines)


@pytest.mark.parametrize("char", [*"\0\t\n\r\x1b\x7f\x85\x9b\xa0\u2028\u2029\u202e\ud800"], ids=ascii)
def test_what_cannot_be_printed_is_escaped(char: str) -> None:
    assert escaped(f"a{char}b") == f"a{ascii(char)[1:-1]}b"


def test_all_else_stays_as_it_is() -> None:
    assert (
        escaped("gr\u00fcn \u65e5\u672c \U0001f600 \\n ' \"") == "gr\u00fcn \u65e5\u672c \U0001f600 \\n ' \""
    )


@pytest.mark.parametrize("name", ["trio_ws_server", "trio_ws_server.access"])
def test_whatever_is_logged_is_one_line(name: str, written: Callable[[], list[str]]) -> None:
    class Object:
        def __str__(self) -> str:
            return NASTY

        __repr__ = __str__

    logging.getLogger(name).info("%s %r %s %d %s" + NASTY, NASTY, NASTY, Object(), 7, Exception(NASTY))
    logging.getLogger(name).info("%(key)r", {"key": Object()})
    assert check(written()).count(f"LOG INFO {name} ") == len(written()) == 2


def test_a_traceback_cannot_pass_for_other_records(written: Callable[[], list[str]]) -> None:
    def fail() -> None:
        try:
            raise KeyError(NASTY)
        except KeyError as exc:
            exc.add_note(NASTY)
            raise ExceptionGroup(
                NASTY, [ValueError(NASTY), SyntaxError(NASTY, (NASTY, 1, 1, NASTY))]
            ) from exc

    try:
        fail()
    except ExceptionGroup:
        logger.exception("failed")
    logger.error("failed, without a traceback", exc_info=ValueError(NASTY))
    lines = written()
    assert [line for line in lines if not line.startswith(" ")] == [
        "LOG ERROR trio_ws_server failed",
        "Traceback (most recent call last):",
        "LOG ERROR trio_ws_server failed, without a traceback",
        "ValueError: \\r",
    ]
    assert all(map(str.isprintable, lines))
    assert f"  {FORGED}" in lines


def test_a_message_that_cannot_be_formatted_is_left_to_the_handlers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    logger.error("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_program_can_configure_the_loggers_as_it_likes() -> None:
    program = f"""
import logging.config
from trio_ws_server.logs import access_logger, logger

logging.config.dictConfig({{
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {{"ours": {{"format": "LOG %(message)s"}}}},
    "handlers": {{"ours": {{"class": "logging.StreamHandler", "formatter": "ours"}}}},
    "loggers": {{
        "trio_ws_server": {{"handlers": ["ours"]}},
        "trio_ws_server.access": {{"handlers": ["ours"], "propagate": False}},
    }},
}})
logger.error("%s", {NASTY!r})
access_logger.error("%s", {NASTY!r})
"""
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    lines = ran.stderr.splitlines()
    assert len(lines) == 2
    check(lines)


def test_nothing_is_logged_past_the_two_loggers_that_escape() -> None:
    sources = Path(trio_ws_server.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "getLogger" in path.read_text()] == ["logs.py"]


TRICKS = {
    "a target": b"GET /\x1b[2J\x9b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a target that is none": b"GET http:///\\u2028 HTTP/1.1\r\nHost: h\r\n\r\n",
    "a version": b"GET / HTTP/9.9\r\nHost: h\r\n\r\n",
    "a host": b"GET / HTTP/1.1\r\nHost: evil\x85\x9b2J\r\n\r\n",
    "a host that is not served": b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n",
    "a transfer coding": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x85\x9b\r\n\r\n",
    "a field's name": b"GET / HTTP/1.1\r\nHost: h\r\n\x85\x9b: a\r\n\r\n",
    "a chunk's size": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\x85\x9b\r\n",
    "a response in the middle of a line": f"GET / HTTP/1.1\n{FORGED}\r\n\r\n".encode(),
}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
TRICKS |= {
    f"of a handshake {name.decode()}": HANDSHAKE + name + b": \x85\x9b2J\r\n\r\n"
    for name in (b"Origin", b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Version", b"Sec-WebSocket-Key")
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
async def test_a_peers_request_is_text_in_the_log(trick: bytes, written: Callable[[], list[str]]) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(await receive(), scope)

    config = Config(allowed_hosts=("h",), allowed_origins=("https://h",))
    async with serving(asgi(fail), config=config) as client:
        await client.send(trick)
        await client.receive_all()
    check(written())


async def raise_what_comes(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    await receive()
    event = await receive()
    raise ValueError(event.get("text") or event["reason"])


async def send_what_comes_as_a_type(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    await receive()
    await send({"type": (await receive())["text"]})


async def raise_a_disconnect(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    await receive()
    raise ClientDisconnected((await receive())["reason"])


@pytest.mark.parametrize(
    ("app", "event"),
    [
        (echo, CloseConnection(1000, NASTY)),
        (raise_what_comes, CloseConnection(1000, NASTY)),
        (raise_what_comes, TextMessage(NASTY)),
        (raise_a_disconnect, CloseConnection(1000, NASTY)),
        (send_what_comes_as_a_type, TextMessage(NASTY)),
    ],
)
async def test_what_a_peer_sends_over_a_websocket_is_text_in_the_log(
    app: Callable[..., Any], event: Event, written: Callable[[], list[str]], autojump_clock: MockClock
) -> None:
    async with serving(asgi(app), config=Config()) as client:
        await client.open()
        await client.send_event(event)
        await client.receive_all()
    assert "\\x1b[2J" in check(written())


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.accept", "subprotocol": NASTY},
        {"type": "websocket.accept", "headers": [(NASTY.encode(), b"")]},
        {"type": "websocket.close" + NASTY},
    ],
)
async def test_what_an_application_makes_up_is_text_in_the_log(
    event: dict[str, Any], written: Callable[[], list[str]]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(event)

    async with serving(asgi(app), config=Config()) as client:
        await client.open()
        await client.receive_all()
    assert "1970" in check(written())


@pytest.mark.parametrize("event", ["lifespan.shutdown.failed", "lifespan.shutdown.complete"])
async def test_what_a_lifespan_says_is_text_in_the_log(event: str, written: Callable[[], list[str]]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": event, "message": NASTY})
        raise ValueError(NASTY)

    async with run_lifespan(app, "on"):
        pass
    assert "1970" in check(written())
