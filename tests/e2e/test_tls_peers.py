"""TLS with peers that are not ours: OpenSSL's own client, Python's blocking sockets, the websockets client."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme
from websockets.sync.client import connect

from tests.e2e.helpers import APPS, DEADLINE, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(
    OPENSSL is None, reason="openssl is not installed (Debian: apt install openssl)"
)

CA = trustme.CA()
LAST_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Where a server speaks TLS."""
    pem = tmp_path_factory.mktemp("tls") / "server.pem"
    CA.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    with running("--ssl-certfile", str(pem), "--app-dir", str(APPS), "apps:echo") as server:
        yield server.address


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(path))
    return path


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.minimum_version = context.maximum_version = version
    CA.configure_trust(context)
    return context


def s_client(address: tuple[str, int], authority: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        str(OPENSSL),
        "s_client",
        *("-connect", "{}:{}".format(*address)),
        *("-servername", "localhost", "-verify_hostname", "localhost", "-verify_return_error"),
        *("-CAfile", str(authority)),
        *options,
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssls_client_gets_a_response_and_its_end(
    address: tuple[str, int], authority: Path, version: str
) -> None:
    with s_client(address, authority, version, "-quiet") as client:
        output, _ = client.communicate(LAST_GET, DEADLINE)
    assert client.returncode == 0
    assert b"HTTP/1.1 200 OK\r\n" in output
    assert b"unexpected eof" not in output


@needs_openssl
def test_openssls_client_can_have_keys_updated(address: tuple[str, int], authority: Path) -> None:
    with s_client(address, authority, "-tls1_3") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for _ in range(3):
            # A command is one that comes alone.
            client.stdin.write(b"K\n")
            client.stdin.flush()
            while b"KEYUPDATE" not in client.stdout.readline():
                pass
        client.stdin.write(LAST_GET)
        client.stdin.flush()
        # It ends with the connection.
        assert b"HTTP/1.1 200 OK\r\n" in client.stdout.read()


@versions
def test_the_websockets_client_gets_messages_of_all_sizes_back(
    address: tuple[str, int], version: ssl.TLSVersion
) -> None:
    uri = f"wss://localhost:{address[1]}"
    messages = [bytes([size % 251]) * size for size in (1, 1000, 16_384, 16_385, 100_000, 2**20, 5)]
    with connect(
        uri, sock=socket.create_connection(address, DEADLINE), ssl=client_context(version), max_size=2**21
    ) as websocket:
        for message in messages:
            websocket.send(message)
            assert websocket.recv(DEADLINE) == message
        for number in range(1000):
            websocket.send(str(number))
        assert [websocket.recv(DEADLINE) for _ in range(1000)] == [str(number) for number in range(1000)]


@versions
def test_after_the_clients_close_notify_it_still_gets_the_response(
    address: tuple[str, int], version: ssl.TLSVersion
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(version).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(address, DEADLINE) as connection:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65_536))
        tls.write(LAST_GET)
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        connection.sendall(outgoing.read())
        while ciphertext := connection.recv(65_536):
            incoming.write(ciphertext)
    assert tls.read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_session_is_resumed(address: tuple[str, int]) -> None:
    context = client_context(ssl.TLSVersion.TLSv1_3)
    session = None
    for resumed in False, True:
        with (
            socket.create_connection(address, DEADLINE) as connection,
            context.wrap_socket(connection, server_hostname="localhost", session=session) as secured,
        ):
            assert secured.session_reused is resumed
            secured.sendall(LAST_GET)
            while secured.recv(65_536):
                pass
            session = secured.session
