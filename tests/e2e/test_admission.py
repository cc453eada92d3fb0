"""Clients beyond the limits read a whole 503, whatever they send, and others get in: with real TCP."""

from __future__ import annotations

import socket
import time

from tests.e2e.helpers import DEADLINE, ServerProcess, receive_all, running

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LARGE_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)


def response(server: ServerProcess, request: bytes = GET, source: str = "127.0.0.1") -> bytes:
    with socket.create_connection(server.address, DEADLINE, (source, 0)) as connection:
        connection.sendall(request)
        return receive_all(connection)


def wait_until_served(server: ServerProcess) -> None:
    """A place is free a moment after its connection has ended."""
    deadline = time.monotonic() + DEADLINE
    while not response(server).startswith(b"HTTP/1.1 200 "):
        assert time.monotonic() < deadline, "the place is not given back"


def test_beyond_the_limit_clients_read_a_503_until_a_connection_ends() -> None:
    with running("--limit-connections", "1", "--keep-alive-timeout", "60", "apps:echo") as server:
        with server.connect() as first:
            first.sendall(GET.replace(b"close", b"keep-alive"))
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
            for request in GET, LARGE_POST:
                answer = response(server, request).lower()
                assert answer.startswith(b"http/1.1 503 service unavailable\r\n")
                assert b"\r\nretry-after: 5\r\n" in answer
                assert b"\r\nconnection: close\r\n" in answer
                assert answer.endswith(b"\r\n\r\ntoo many connections: try again later\n")
        wait_until_served(server)
        assert server.stop() == 0
    assert server.log.count("beyond --limit-connections 1\n") == 1


def test_another_address_gets_in_where_one_has_all_its_places() -> None:
    options = "--limit-connections-per-ip", "1", "--keep-alive-timeout", "60"
    with running(*options, "apps:echo") as server, server.connect() as first:
        # Of those who come at the same time, any may be the first.
        first.sendall(GET.replace(b"close", b"keep-alive"))
        assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert response(server).startswith(b"HTTP/1.1 503 ")
        assert response(server, source="127.0.0.2").startswith(b"HTTP/1.1 200 ")
