"""What the costs of `benchmarks.microbenchmarks` are measured by: work that no change of the server can change."""

from __future__ import annotations

import socket
import zlib
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from benchmarks.frames import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KIB = 1024


class _Account:
    """Something with attributes and a method."""

    def __init__(self) -> None:
        self.total = 0
        self.sizes: dict[str, int] = {}

    def add(self, name: str, value: int) -> None:
        """Do what Python does most of the time: look up, compare, count, store."""
        if value & 1:
            self.total += value
        self.sizes[name] = self.sizes.get(name, 0) + len(name)


def _call(count: int) -> None:
    account = _Account()
    for number in range(count):
        account.add("abcd"[number & 3 :], number)


@contextmanager
def python() -> Iterator[Callable[[int], None]]:
    """Calls of a small method in Python."""
    yield _call


def _send_to_and_fro(left: socket.socket, right: socket.socket, count: int) -> None:
    for _ in range(count):
        left.send(b"x" * 64)
        right.send(right.recv(_KIB))
        left.recv(_KIB)


@contextmanager
def sockets() -> Iterator[Callable[[int], None]]:
    """Messages over TCP to the other end of a connection, and back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        for end in left, right:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield partial(_send_to_and_fro, left, right)


def _copy(source: bytearray, count: int) -> None:
    for _ in range(count):
        bytes(source)


@contextmanager
def copying() -> Iterator[Callable[[int], None]]:
    """Copies of 64 KiB."""
    yield partial(_copy, bytearray(64 * _KIB))


@contextmanager
def zlib_alone() -> Iterator[Callable[[int], None]]:
    """Texts of 1 KiB inflated and compressed, with the parameters that permessage-deflate has by default here."""
    texts = [json_text(number, _KIB, Random(number)) for number in range(16)]
    compressor = zlib.compressobj(level=6, wbits=-12, memLevel=5)
    decompressor = zlib.decompressobj(wbits=-12)

    def compress(count: int) -> None:
        for number in range(count):
            data = compressor.compress(texts[number % 16]) + compressor.flush(zlib.Z_SYNC_FLUSH)
            decompressor.decompress(data)

    yield compress
