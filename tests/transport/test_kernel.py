"""What the kernel is asked for, and what it tells, of the bytes that it keeps."""

from __future__ import annotations

import socket

import trio

from trio_ws_server.transport.kernel import keep_more


def test_a_socket_whose_kernel_does_not_know_of_the_limit_is_used_without_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as no_tcp:
        assert not keep_more(trio.socket.from_stdlib_socket(no_tcp))
