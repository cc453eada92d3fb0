"""The command line as a process: that its options take effect, what it prints, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING

import h11
import pytest
import trio
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect, unix_connect

from tests.e2e.helpers import APPS, DEADLINE, receive_all, running, starting
from tests.helpers import needs_ipv6

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.helpers import ServerProcess


def get(connection: socket.socket, path: str = "/") -> tuple[int, dict[str, str], bytes]:
    """Make a request; return the status, the header fields and the body."""
    client = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("Host", "x"), ("Connection", "close")])
    with closing(connection):
        connection.sendall(client.send(request) or b"")
        client.receive_data(receive_all(connection))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return response.status_code, headers, body


def websocket_url(server: ServerProcess) -> str:
    return server.url.replace("http", "ws", 1)


def open_unix(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(str(path))
    return connection


# What is served.


@pytest.mark.parametrize(
    "arguments",
    [["--native", "apps:native_echo"], ["--factory", "apps:factory"], ["apps:asgi2"]],
    ids=" ".join,
)
def test_each_kind_of_application_echoes(arguments: list[str]) -> None:
    with running(*arguments) as server:
        with connect(websocket_url(server)) as websocket:
            websocket.send("Hello!")
            assert websocket.recv(DEADLINE) == "Hello!"
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_the_application_is_imported_from_app_dir(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "unheard_of.py").write_text("async def app(scope, receive, send): ...\n")
    with running("--app-dir", "elsewhere", "unheard_of:app", cwd=tmp_path) as server:
        assert server.stop() == 0


def test_with_lifespan_off_the_application_hears_of_none() -> None:
    with running("--lifespan", "off", "apps:echo") as server:
        assert server.stop() == 0
        assert "lifespan" not in server.log


# What responses and scopes hold.


@pytest.fixture(scope="module")
def plain() -> Iterator[ServerProcess]:
    with running("apps:describe") as server:
        yield server


@pytest.fixture(scope="module")
def adorned() -> Iterator[ServerProcess]:
    """A server with every option on what a response and the scope hold; some come from the environment."""
    with running(
        *("--no-server-header", "--no-date-header", "--root-path", "/mounted", "apps:describe"),
        environment={"TRIO_WS_SERVER_HEADER": "X-Frame-Options: DENY\nX-B: two words"},
    ) as server:
        yield server


def test_server_and_date_are_sent_unless_turned_off(plain: ServerProcess, adorned: ServerProcess) -> None:
    assert {"server", "date"} <= get(plain.connect())[1].keys()
    assert not {"server", "date"} & get(adorned.connect())[1].keys()


def test_header_fields_are_added_to_every_response(adorned: ServerProcess) -> None:
    _, headers, _ = get(adorned.connect())
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-b"] == "two words"


def test_the_root_path_is_in_the_scope_and_begins_the_path(
    plain: ServerProcess, adorned: ServerProcess
) -> None:
    assert json.loads(get(plain.connect(), "/a")[2])["root_path"] == ""
    scope = json.loads(get(adorned.connect(), "/a")[2])
    assert scope["root_path"] == "/mounted"
    assert scope["path"] == "/mounted/a"


# Where it listens.


def test_it_listens_on_each_host_and_says_so() -> None:
    with running("--host", "127.0.0.1", "--host", "127.0.0.2", "--lifespan", "off", "apps:echo") as server:
        server.wait_for("Listening on ", times=2)
        for url, host in zip(server.urls, ["127.0.0.1", "127.0.0.2"], strict=True):
            assert url.startswith(f"http://{host}:")
            port = int(url.rpartition(":")[2])
            assert get(socket.create_connection((host, port), DEADLINE))[0] == 200


@needs_ipv6
def test_it_listens_on_ipv6() -> None:
    with running("--host", "::1", "apps:describe") as server:
        assert server.url.startswith("http://[::1]:")
        scope = json.loads(get(server.connect())[2])
        assert scope["client"][0] == "::1"
        assert scope["server"] == list(server.address)


def test_it_listens_on_a_unix_socket_and_removes_it_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running("--uds", str(path), "--uds-mode", "660", "apps:describe") as server:
        assert server.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        scope = json.loads(get(open_unix(path))[2])
        assert (scope["server"], scope["client"]) == ([str(path), None], None)
        assert server.stop() == 0
    assert not path.exists()


def test_it_takes_the_place_of_a_server_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running("--uds", str(path), "apps:echo") as killed:
        assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    assert path.is_socket()
    with running("--uds", str(path), "apps:echo"), unix_connect(str(path)) as websocket:
        websocket.send("Hello!")
        assert websocket.recv(DEADLINE) == "Hello!"


def test_it_listens_on_an_inherited_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        host, port = sock.getsockname()
        with running("--fd", str(sock.fileno()), "apps:echo", pass_fds=[sock.fileno()]) as server:
            assert server.url == f"http://{host}:{port}"
            assert get(server.connect())[0] == 200


# Limits.


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    """A server whose every limit is soon reached."""
    options = {
        "--max-head-size": "1000",
        "--handshake-timeout": "0.5",
        "--keep-alive-timeout": "0.1",
        "--ws-max-message-size": "10",
        "--ws-ping-interval": "0.1",
        "--ws-ping-timeout": "0.5",
        "--write-timeout": "0.2",
    }
    arguments = [argument for option in options.items() for argument in option]
    with running(*arguments, "apps:floods_or_echoes") as server:
        yield server


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_head_above_max_head_size_is_refused(strict: ServerProcess) -> None:
    assert get(strict.connect(), "/" + "a" * 1000)[0] == 431


def test_a_head_that_takes_longer_than_the_handshake_timeout_is_refused(strict: ServerProcess) -> None:
    with strict.connect() as connection:
        connection.sendall(GET[:10])
        assert receive_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_idles_longer_than_the_keep_alive_timeout_is_closed(strict: ServerProcess) -> None:
    with strict.connect() as connection:
        connection.sendall(GET)
        assert b"connection: close" not in receive_all(connection).lower()


def test_a_message_above_ws_max_message_size_closes_with_1009(strict: ServerProcess) -> None:
    with connect(websocket_url(strict)) as websocket:
        websocket.send("x" * 10)
        assert websocket.recv(DEADLINE) == "x" * 10
        websocket.send("x" * 11)
        with pytest.raises(ConnectionClosed, match="1009"):
            websocket.recv(DEADLINE)


def test_a_ping_that_stays_unanswered_for_the_ping_timeout_closes_the_connection(
    strict: ServerProcess,
) -> None:
    with strict.connect() as connection:
        connection.sendall(UPGRADE % b"/silent")
        frames = receive_all(connection).partition(b"\r\n\r\n")[2]
    assert frames[:1] == b"\x89"
    assert frames[6:7] == b"\x88"
    strict.wait_for('"WebSocket /silent" lost with 1006')


def test_a_peer_that_takes_no_bytes_for_the_write_timeout_is_dropped(strict: ServerProcess) -> None:
    with strict.connect() as connection:
        connection.sendall(UPGRADE % b"/flood")
        strict.wait_for('"WebSocket /flood" lost with 1006')


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants its clients' certificates."""
    directory = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    options = {
        "--ssl-certfile": "cert.pem",
        "--ssl-keyfile": "key.pem",
        "--ssl-ca-certs": "ca.pem",
        "--ssl-cert-reqs": "required",
        "--ssl-ciphers": "ECDHE+AESGCM",
    }
    arguments = [argument for option in options.items() for argument in option]
    apps = ["--app-dir", str(APPS), "apps:echo"]
    with running(*arguments, *apps, cwd=directory) as server:
        yield server


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the server."""
    context = ssl.create_default_context()
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    authority.configure_trust(context)
    return context


def test_a_client_with_a_certificate_is_served_over_tls(
    tls: ServerProcess, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    authority.issue_cert("client@example.org").configure_cert(trusting)
    assert tls.url.startswith("https://")
    uri = f"wss://localhost:{tls.address[1]}"
    with connect(uri, sock=tls.connect(), ssl=trusting) as websocket:
        websocket.send("Hello!")
        assert websocket.recv(DEADLINE) == "Hello!"


def test_a_client_without_a_certificate_is_refused(tls: ServerProcess, trusting: ssl.SSLContext) -> None:
    with tls.connect() as connection:
        # In TLS 1.3 the client's handshake is done before the server has seen that there is no certificate.
        secured = trusting.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=False)
        with secured, pytest.raises(ssl.SSLError, match="alert certificate required"):
            secured.recv(1)


def test_only_the_ciphers_listed_are_spoken(
    tls: ServerProcess, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    authority.issue_cert("client@example.org").configure_cert(trusting)
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.set_ciphers("ECDHE+CHACHA20")
    with tls.connect() as connection, pytest.raises(ssl.SSLError, match="alert handshake failure"):
        trusting.wrap_socket(connection, server_hostname="localhost")


# Logs.


def test_requests_and_websockets_are_in_the_access_log() -> None:
    with running("apps:echo") as server:
        get(server.connect(), "/a?b")
        with connect(f"{websocket_url(server)}/c") as websocket:
            websocket.send("Hello!")
            websocket.recv()
        assert server.stop() == 0
        assert '"GET /a?b HTTP/1.1" 200 7 bytes in ' in server.log
        assert server.log.count('"WebSocket /c" accepted\n') == 1
        assert server.log.count('"WebSocket /c" closed by the client with 1000 after ') == 1


def test_without_the_access_log_only_the_server_itself_is_logged() -> None:
    with running("--no-access-log", "apps:describe") as server:
        get(server.connect())
        assert server.stop() == 0
        lines = server.log.splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == [
        "Lifespan: not supported by the application, which raised AssertionError()",
        f"Listening on {server.url} (Trio {trio.__version__})",
        "SIGTERM: shutting down, in 30 s at the most",
    ]


def test_less_severe_records_than_the_log_level_are_left_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        descriptor = sock.fileno()
        arguments = ["--log-level", "warning", "--fd", str(descriptor), "apps:describe"]
        with starting(*arguments, pass_fds=[descriptor]) as server:
            assert get(socket.create_connection(sock.getsockname(), DEADLINE))[0] == 200
            assert server.stop() == 0
            assert server.log == ""


# How it ends.


def ending(*arguments: str) -> tuple[int, str]:
    """Let the command line end by itself; return its exit status and what it wrote to standard error."""
    with starting(*arguments) as server:
        return server.wait(), server.log


def test_an_error_of_use_is_one_line_and_status_2() -> None:
    status, log = ending("apps:ecko")
    assert status == 2
    assert log == "Error: cannot import 'ecko' from 'apps': it has no such attribute; did you mean 'echo'?\n"


def test_a_port_in_use_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, log = ending("--port", port, "apps:echo")
    assert status == 1
    assert log == (
        f"Error: cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another --port, or stop what is using it\n"
    )


def test_an_import_error_inside_the_application_shows_its_traceback_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    status, log = ending("--app-dir", str(tmp_path), "broken:app")
    assert status == 1
    assert 'broken.py", line 1, in <module>\n    import no_such_module\n' in log
    assert log.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


def test_a_startup_that_fails_is_one_line_and_status_3() -> None:
    status, log = ending("--port", "0", "apps:fails_to_start")
    assert status == 3
    assert log == "Error: the application's startup failed: the database is down\n"
