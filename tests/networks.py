"""What tests have between the two ends of a connection: memory, or sockets, whose bytes the kernel keeps."""

from __future__ import annotations

import os
import selectors
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

from tests.tls_ends import SERVER_CONTEXT, End, TLSPeer, client_context, shake_hands
from trio_ws_server.transport import TLSStream, poller
from trio_ws_server.transport.poller import PortableSelector, open_selector

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from trio.abc import Stream

    from trio_ws_server.transport.poller import Selector

SMALL = 4096
"""Bytes that the kernel is asked to keep at most; it takes some less before it has no room."""


class LateReader(trio.abc.ReceiveStream):
    """The reading side of a socket before whose data lies what only filled the network: that is dropped."""

    def __init__(self, stream: trio.SocketStream, filling: int) -> None:
        self._stream = stream
        self._filling = filling

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while self._filling:
            self._filling -= len(await self._stream.receive_some(self._filling))
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def memory_pair(*, full: bool) -> tuple[Stream, Stream]:
    """Return two ends of a network that takes everything, or, ``full``, only what is being read."""
    return lockstep_stream_pair() if full else memory_stream_pair()


def socket_pair(*, full: bool) -> tuple[Stream, Stream]:
    """
    Return two connected sockets.

    With ``full``, the kernel keeps little between them, and from the first to the second so much already that it
    takes nothing until that one reads.
    """
    near, far = socket.socketpair()
    filling = 0
    if full:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filling += near.send(SMALL * b"-")
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (near, far))
    return ours, trio.StapledStream(theirs, LateReader(theirs, filling)) if filling else theirs


def tls_pair(pair: Callable[..., tuple[Stream, Stream]], *, full: bool) -> tuple[Stream, Stream]:
    """Return a server's and a client's end of TLS over such streams; the handshake did not go through these."""
    ours, theirs = pair(full=full)
    server = TLSStream(ours, SERVER_CONTEXT)
    client = End.of_client(client_context())
    shake_hands(client, End(server.tls.ssl_object, server.tls.incoming, server.tls.outgoing))
    return server, TLSPeer(theirs, client)


class Network(NamedTuple):
    """Streams, and what is to tell transports when they are ready, if these are sockets."""

    pair: Callable[..., tuple[Stream, Stream]]
    open_selector: Callable[[], Selector | None]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have engines that are opened in the ``with`` use this network's selector."""
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(poller, "open_selector", self.open_selector)
            yield


def portable_selector() -> Selector:
    """Return what a platform with kqueue has, made of what this platform has."""
    return PortableSelector(selectors.EpollSelector())


MEMORY = Network(memory_pair, open_selector)
SOCKETS = Network(socket_pair, open_selector)
PORTABLE = Network(socket_pair, portable_selector)
STREAMS_OVER_SOCKETS = Network(socket_pair, lambda: None)
TLS_OVER_MEMORY = Network(partial(tls_pair, memory_pair), open_selector)
TLS_OVER_SOCKETS = Network(partial(tls_pair, socket_pair), open_selector)

chosen = MEMORY
"""What connections are made over where a test does not say: see the fixture ``network_of_all``."""


def stream_pair(*, lockstep: bool) -> tuple[Stream, Stream]:
    """Return two ends of a network that takes what it can, or, in lockstep, only what is being read."""
    return chosen.pair(full=lockstep)


memory_only = pytest.mark.parametrize("network_of_all", [MEMORY], ids=["memory"], indirect=True)
"""For a test that has to know to the byte what the network holds, or that breaks it in ways of its own."""


without_tls = pytest.mark.parametrize(
    "network_of_all", [MEMORY, SOCKETS], ids=["memory", "sockets"], indirect=True
)
"""For a test in which a connection is dropped, and that is to be an end: without ``close_notify`` it is none."""


@contextmanager
def noted_sends() -> Iterator[list[bytes]]:
    """Return what all sockets take during the ``with``, one call after the other."""
    noted: list[bytes] = []
    send, sendmsg = socket.socket.send, socket.socket.sendmsg

    def noting(sock: socket.socket, data: bytes) -> int:
        count = send(sock, data)
        noted.append(bytes(data[:count]))
        return count

    def noting_parts(sock: socket.socket, parts: list[bytes]) -> int:
        count = sendmsg(sock, parts)
        noted.append(b"".join(parts)[:count])
        return count

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(socket.socket, "send", noting)
        patches.setattr(socket.socket, "sendmsg", noting_parts)
        yield noted


@asynccontextmanager
async def left_closed(stream: Stream) -> AsyncGenerator[None]:
    """See to it that at the end of the ``with`` a stream's own end is closed, whoever has got its socket."""
    if isinstance(stream, TLSStream):
        stream = stream.stream
    if isinstance(stream, trio.SocketStream):
        inode = os.fstat(stream.socket.fileno()).st_ino
        yield
        assert inode not in _open_inodes()
    else:
        yield
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


def _open_inodes() -> Iterator[int]:
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            yield os.fstat(int(name)).st_ino
