"""Every example runs as its text says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
import trustme
from websockets.sync.client import connect

from tests.e2e.helpers import DEADLINE, ENVIRONMENT, REPOSITORY, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.helpers import ServerProcess


@contextmanager
def serving(*arguments: str) -> Iterator[ServerProcess]:
    """Run ``trio-ws-server`` from the repository, as the examples say; it must end well."""
    with running(*arguments, cwd=REPOSITORY) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


@contextmanager
def python(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run an example as a script."""
    command = (sys.executable, *command)
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(*command: str) -> str:
    """Run an example as a script to its end, and return what it prints."""
    with python(*command) as script:
        output, _ = script.communicate(timeout=DEADLINE)
        assert script.returncode == 0
        return output


def websocket_url(server: ServerProcess) -> str:
    return server.url.replace("http", "ws", 1)


@contextmanager
def http(server: ServerProcess) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(*server.address, timeout=DEADLINE)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def echo_script() -> Iterator[None]:
    """``examples/echo.py`` as a script, which has its port in its text."""
    address = ("127.0.0.1", 8765)
    try:
        socket.create_server(address).close()
    except OSError as exc:
        pytest.skip(f"port 8765, that of examples/echo.py, cannot be had: {exc}")
    with python("examples/echo.py") as script:
        deadline = time.monotonic() + DEADLINE
        while True:  # it says nothing of its own
            assert script.poll() is None
            assert time.monotonic() < deadline
            try:
                socket.create_connection(address, DEADLINE).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        yield


@pytest.mark.usefixtures("echo_script")
def test_the_echo_script_sends_back_what_the_hello_client_says() -> None:
    assert output_of("examples/hello_client.py") == "Hello world!\n"


def test_the_echo_handler_is_served_by_the_command_line() -> None:
    with serving("--native", "examples.echo:echo") as server:
        assert output_of("examples/hello_client.py", websocket_url(server)) == "Hello world!\n"


def test_the_bare_asgi_application_echoes_and_greets() -> None:
    with serving("examples.bare_asgi:app") as server:
        with connect(websocket_url(server)) as websocket:
            for message in "Hello!", b"\0\xff":
                websocket.send(message)
                assert websocket.recv(DEADLINE) == message
        with http(server) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"Connect a WebSocket client here.\n"


def test_what_one_says_in_the_chat_the_others_in_the_room_read() -> None:
    with serving("examples.chat:app") as server:
        room = f"{websocket_url(server)}/ws/tea"
        with connect(f"{room}?name=Ada") as ada, connect(f"{room}?name=Bob") as bob:
            ada.send("Hello!")
            events = iter(lambda: json.loads(bob.recv(DEADLINE)), None)
            said = next(event for event in events if event["kind"] == "said")
            assert (said["name"], said["text"]) == ("Ada", "Hello!")
        with http(server) as connection:
            connection.request("GET", "/")
            assert b"<html" in connection.getresponse().read()


def test_the_starlette_routes_greet_with_the_lifespans_state_count_and_shout() -> None:
    with serving("examples.starlette_routes:app") as server:
        with http(server) as connection:
            connection.request("GET", "/greet/Ada")
            assert connection.getresponse().read() == b'{"message":"Hello, Ada!"}'
            connection.request("GET", "/count")
            assert list(connection.getresponse()) == [b"1\n", b"2\n", b"3\n"]
        with connect(f"{websocket_url(server)}/shout") as websocket:
            websocket.send("hello")
            assert websocket.recv(DEADLINE) == "HELLO"


def test_the_tls_example_says_hello_to_itself(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pem = tmp_path / "localhost.pem"
    pem.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    assert output_of("examples/tls.py", str(pem)) == "Hello over TLS!\n"
