"""TLS straight on a socket: nothing that arrived is left behind in it, nothing is split, and memory is bounded."""

from __future__ import annotations

import itertools
import random
import select
import socket
import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tests.helpers import Recorder, read_all
from tests.networks import TLS_OVER_SOCKETS, noted_sends
from tests.protocol.memory import most_held_during
from tests.tls_ends import SERVER_CONTEXT, End, TLSPeer, client_context, shake_hands
from tests.transport.lines import KIB, Line, line
from trio_ws_server.transport.poller import BUFFER_SIZE
from trio_ws_server.transport.tls import PLAINTEXT_SIZE, RECORD_SIZE, TLS
from trio_ws_server.transport.tls_socket import PIECE_SIZE, TLSSocket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trio.testing import MockClock

    from trio_ws_server.transport.socket import Socket

RANDOM = random.Random(8446).randbytes(1000 * KIB)
APPLICATION_DATA = 23
HEADER_SIZE = 5

versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


def record_types(ciphertext: bytes) -> list[int]:
    """Return the types of records (RFC 8446 section 5.1), the last of which must be whole."""
    types = []
    while ciphertext:
        types.append(ciphertext[0])
        size = HEADER_SIZE + int.from_bytes(ciphertext[3:HEADER_SIZE], "big")
        assert len(ciphertext) >= size
        ciphertext = ciphertext[size:]
    return types


def agreed(sock: Socket, context: ssl.SSLContext | None = None) -> tuple[TLSSocket, End]:
    """Return our end of TLS, on a socket, and a client's."""
    tls = TLS(SERVER_CONTEXT, None)
    client = End.of_client(context or client_context())
    shake_hands(client, End(tls.ssl_object, tls.incoming, tls.outgoing))
    return TLSSocket(sock, tls), client


@contextmanager
def connected(context: ssl.SSLContext | None = None) -> Iterator[tuple[Receiving, socket.socket, End]]:
    """Yield our end, the client's socket, and its TLS."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(10)
        tls_socket, client = agreed(ours, context)
        yield Receiving(tls_socket, ours), theirs, client


class Receiving:
    """Our end, received from as the poller does: when the socket below is readable, and not otherwise."""

    def __init__(self, tls_socket: TLSSocket, below: socket.socket) -> None:
        self.tls_socket = tls_socket
        self.data = b""
        self.ended = False
        self._below = below
        self._buffer = memoryview(bytearray(3 * RECORD_SIZE))

    def has_something(self) -> bool:
        return bool(select.select([self._below], [], [], 0)[0])

    def receive(self) -> None:
        """Receive until there is nothing more; raises ``OSError`` if the connection is lost."""
        while self.has_something() and not self.ended:
            with suppress(BlockingIOError):
                size = self.tls_socket.recv_into(self._buffer)
                self.data += self._buffer[:size]
                self.ended = not size


def encrypted(end: End, *messages: bytes) -> bytes:
    for message in messages:
        end.ssl_object.write(message)
    return end.outgoing.read()


def close_notify(end: End) -> bytes:
    with pytest.raises(ssl.SSLWantReadError):
        end.ssl_object.unwrap()
    return end.outgoing.read()


def decrypted(end: End, ciphertext: bytes) -> bytes:
    """Return what our end has sent, of which there must be nothing but whole records."""
    end.incoming.write(ciphertext)
    plaintext = b""
    with suppress(ssl.SSLWantReadError):
        while data := end.ssl_object.read(1000 * KIB):
            plaintext += data
    assert not end.incoming.pending
    return plaintext


# Receiving


@versions
@given(
    messages=st.lists(st.integers(1, 3 * PLAINTEXT_SIZE), max_size=5),
    cuts=st.lists(st.integers(0, 160 * KIB), max_size=8),
)
def test_what_arrives_is_received_while_the_socket_is_readable_wherever_it_is_cut(
    version: ssl.TLSVersion, messages: list[int], cuts: list[int]
) -> None:
    plaintext = [RANDOM[:size] for size in messages]
    with connected(client_context(version)) as (server, theirs, client):
        ciphertext = encrypted(client, *plaintext) + close_notify(client)
        edges = sorted({0, len(ciphertext), *(min(cut, len(ciphertext)) for cut in cuts)})
        for start, end in itertools.pairwise(edges):
            theirs.sendall(ciphertext[start:end])
            server.receive()
        assert server.data == b"".join(plaintext)
        assert server.ended


def test_the_end_is_seen_that_came_together_with_the_last_data_even_if_the_socket_stays_open() -> None:
    with connected() as (server, theirs, client):
        theirs.sendall(encrypted(client, b"last words") + close_notify(client))
        server.receive()
        assert server.data == b"last words"
        assert server.ended


@versions
def test_data_that_came_before_garbage_arrives_and_then_the_connection_is_lost(
    version: ssl.TLSVersion,
) -> None:
    with connected(client_context(version)) as (server, theirs, client):
        theirs.sendall(encrypted(client, b"data") + bytes(100))
        with pytest.raises(ssl.SSLError):
            server.receive()
        assert server.data == b"data"


@pytest.mark.parametrize("before", [b"", b"data"])
def test_a_connection_that_is_cut_is_lost_and_not_ended(before: bytes) -> None:
    with connected() as (server, theirs, client):
        if before:
            theirs.sendall(encrypted(client, before))
        theirs.close()
        with pytest.raises(ssl.SSLEOFError):
            server.receive()
        assert server.data == before
        assert not server.ended


def test_a_record_that_was_tampered_with_is_answered_with_an_alert() -> None:
    with connected() as (server, theirs, client):
        record = bytearray(encrypted(client, b"data"))
        record[-1] ^= 1
        theirs.sendall(record)
        with pytest.raises(ssl.SSLError):
            server.receive()
        with pytest.raises(ssl.SSLError, match="alert bad record mac"):
            decrypted(client, theirs.recv(KIB))


def test_after_our_end_it_is_still_seen_that_the_peer_sends_and_when_it_ends() -> None:
    with connected() as (server, theirs, client):
        assert decrypted(client, server.tls_socket.end()) == b""
        theirs.sendall(b"whatever")
        theirs.shutdown(socket.SHUT_WR)
        server.receive()
        assert server.data == b"whatever"
        assert server.ended


# Sending


class Narrow:
    """A network that takes, call by call, so many bytes; where that is 0, it has no room."""

    def __init__(self, takes: Iterable[int]) -> None:
        self.taken = b""
        self.offered = 0
        self._takes = iter(takes)

    def send(self, data: bytes | memoryview, /) -> int:
        self.offered = max(self.offered, len(data))
        size = min(next(self._takes), len(data))
        if not size:
            raise BlockingIOError
        self.taken += data[:size]
        return size

    def sendmsg(self, parts: list[bytes | memoryview], /) -> int:
        return self.send(b"".join(parts))

    def recv_into(self, buffer: memoryview, /) -> int:
        raise BlockingIOError

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


def send_all(sock: TLSSocket, data: bytes, *, in_two: int | None = None) -> None:
    """Send as transports do, in two parts or one: what was not taken is offered again, with what is behind it."""
    while data:
        try:
            taken = sock.send(data) if in_two is None else sock.sendmsg([data[:in_two], data[in_two:]])
            data = data[taken:]
        except BlockingIOError:
            continue


@versions
@given(
    messages=st.lists(st.integers(1, 2 * PIECE_SIZE), min_size=1, max_size=4),
    in_two=st.none() | st.integers(1, 2 * PIECE_SIZE),
    takes=st.lists(st.one_of(st.just(0), st.integers(1, 100), st.integers(1, 2 * PIECE_SIZE)), max_size=10),
)
def test_what_is_sent_arrives_whole_whatever_the_network_takes_at_a_time(
    version: ssl.TLSVersion, messages: list[int], in_two: int | None, takes: list[int]
) -> None:
    network = Narrow(itertools.chain(takes, itertools.repeat(10 * KIB)))
    server, client = agreed(network, client_context(version))
    for size in messages:
        send_all(server, RANDOM[:size], in_two=in_two)
        # What is said to be taken is, to the last byte of its ciphertext.
        assert decrypted(client, network.taken) == RANDOM[:size]
        network.taken = b""


def test_no_more_is_encrypted_than_the_network_will_soon_take() -> None:
    network = Narrow([0, *[100] * 50, 0])
    server, _ = agreed(network)
    with pytest.raises(BlockingIOError):
        server.send(RANDOM)
    assert network.offered <= PIECE_SIZE // PLAINTEXT_SIZE * RECORD_SIZE
    assert server.send(RANDOM) == 50 * 100


def test_of_a_large_message_no_more_is_copied_than_is_encrypted_at_once() -> None:
    server, _ = agreed(Narrow(itertools.repeat(0)))

    def send() -> None:
        with suppress(BlockingIOError):
            server.sendmsg([b"header", RANDOM])

    assert most_held_during(send) < 4 * PIECE_SIZE


def test_each_byte_that_the_network_takes_is_progress_and_the_last_comes_last() -> None:
    data = RANDOM[:PLAINTEXT_SIZE]
    network = Narrow(itertools.cycle([100, 0]))
    server, client = agreed(network)
    taken = 0
    while taken < len(data):
        with suppress(BlockingIOError):
            taken += server.send(data[taken:])
        assert taken == min(len(network.taken), len(data) - 1) or taken == len(data)
    assert decrypted(client, network.taken) == data


def test_after_sending_has_failed_nothing_more_is_sent() -> None:
    def takes() -> Iterator[int]:
        yield 10
        yield 0
        raise KeyError("a bug")

    network = Narrow(takes())
    server, _ = agreed(network)
    assert server.send(b"data of some length") == 10
    with pytest.raises(KeyError):
        server.send(b"of some length")
    with pytest.raises(ConnectionAbortedError):
        server.send(b"something else")


# Key updates (RFC 8446 section 4.6.3)


class KeyUpdates:
    """
    A client's requests to update keys, which Python cannot make: each is answered by one of the server's, if asked.

    They are made, by RFC 8446 sections 5.2 and 7, from what a client writes into its key log.
    """

    def __init__(self, key_log: Path) -> None:
        self.context = client_context()
        self.context.keylog_filename = str(key_log)
        self._key_log = key_log
        self._secret = b""

    def _expanded(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self._secret)

    def request(self, *, answer: bool = True) -> bytes:
        """Return the next one's record, the client having sent nothing else since the handshake."""
        if not self._secret:
            lines = self._key_log.read_text().splitlines()
            (secret,) = (line.split()[2] for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET_0"))
            self._secret = bytes.fromhex(secret)
        request = b"\x18\0\0\x01" + bytes([answer]) + b"\x16"
        header = b"\x17\x03\x03" + (len(request) + 16).to_bytes(2, "big")
        record = AESGCM(self._expanded(b"key", 32)).encrypt(self._expanded(b"iv", 12), request, header)
        self._secret = self._expanded(b"traffic upd", 48)
        return header + record


def test_a_key_update_is_answered_and_sending_goes_on_with_the_new_keys(tmp_path: Path) -> None:
    updates = KeyUpdates(tmp_path / "keys")
    with connected(updates.context) as (server, theirs, client):
        for _ in range(3):
            theirs.sendall(updates.request())
            server.receive()
        answer = theirs.recv(KIB)
        send_all(server.tls_socket, b"data")
        assert decrypted(client, answer + theirs.recv(KIB)) == b"data"


@pytest.mark.parametrize(
    ("answer", "what"),
    [(True, "more answers of TLS"), (False, "records without data")],
    ids=["asked", "unasked"],
)
def test_a_peer_that_sends_nothing_but_key_updates_is_lost(tmp_path: Path, answer: bool, what: str) -> None:
    updates = KeyUpdates(tmp_path / "keys")
    with connected(updates.context) as (server, theirs, _):
        theirs.sendall(b"".join(updates.request(answer=answer) for _ in range(2000)))
        with pytest.raises(ConnectionAbortedError, match=what):
            server.receive()


def test_what_tls_has_not_yet_got_rid_of_comes_before_our_end(tmp_path: Path) -> None:
    updates = KeyUpdates(tmp_path / "keys")
    with connected(updates.context) as (server, theirs, client):
        for _ in range(500):
            theirs.sendall(updates.request())
            server.receive()
        end = server.tls_socket.end()
        # Each answer is encrypted with the keys that the one before it announces.
        assert len(record_types(end)) > 1
        theirs.setblocking(False)
        sent = b""
        with suppress(BlockingIOError):
            while True:
                sent += theirs.recv(1000 * KIB)
        assert decrypted(client, sent + end) == b""
        assert not client.ssl_object.read()


# Under a transport


def peer_of(it: Line) -> TLSPeer:
    assert isinstance(it.peer, TLSPeer)
    return it.peer


async def test_what_was_held_leaves_as_one_record() -> None:
    async with line(TLS_OVER_SOCKETS, buffered=True) as it:
        # The session tickets leave with the first data.
        it.transport.write(b"first ")
        await wait_all_tasks_blocked()
        with noted_sends() as sends:
            for piece in b"one ", b"two ", b"three":
                it.transport.write_soon(piece)
            assert sends == []
            await trio.lowlevel.checkpoint()
        assert [record_types(sent) for sent in sends] == [[APPLICATION_DATA]]
        assert await it.peer_reads(19) == b"first one two three"


class Pausing(Recorder):
    """A receiver that pauses reading as soon as something arrives."""

    def __init__(self, it: Line) -> None:
        super().__init__()
        self._it = it

    def data_received(self, data: bytes | memoryview) -> None:
        super().data_received(data)
        self._it.transport.pause_reading()


async def test_a_receiver_that_pauses_at_each_arrival_gets_everything_and_the_end_last() -> None:
    async with line(TLS_OVER_SOCKETS, buffered=True) as it:
        receiver = it.transport.receiver = Pausing(it)
        client = peer_of(it).end
        sent = b""
        for number in range(3):
            for piece in b"%d " % number, RANDOM[: 20 * KIB]:
                client.ssl_object.write(piece)
                sent += piece
        await peer_of(it).send_eof()
        await wait_all_tasks_blocked()
        assert receiver.events == []
        for _ in range(10):
            it.transport.resume_reading()
            await wait_all_tasks_blocked()
        assert receiver.data == sent
        assert receiver.events == ["eof"]


async def test_who_floods_gets_no_more_of_a_turn_than_over_a_plain_socket() -> None:
    sizes = []

    class Measuring(Recorder):
        def data_received(self, data: bytes | memoryview) -> None:
            super().data_received(data)
            sizes.append(len(data))

    async with line(TLS_OVER_SOCKETS, buffered=True) as it:
        receiver = it.transport.receiver = Measuring()
        await it.peer.send_all(RANDOM)
        await wait_all_tasks_blocked()
        assert receiver.data == RANDOM
        assert max(sizes) <= BUFFER_SIZE


async def test_shutdown_ends_with_close_notify_even_where_the_network_is_full() -> None:
    async with line(TLS_OVER_SOCKETS) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.transport.shutdown, 5)
        await wait_all_tasks_blocked()
        assert it.unsent() > 0
        # A connection that was cut would raise BrokenResourceError.
        assert await it.peer_reads_all() == b""
        await it.peer.aclose()


async def test_a_peer_that_does_not_even_take_our_end_is_dropped(autojump_clock: MockClock) -> None:
    async with line(TLS_OVER_SOCKETS) as it:
        await it.transport.shutdown(5)
        assert trio.current_time() == 30
        assert it.recorder.events == ["lost"]


async def test_a_client_that_hangs_up_without_close_notify_is_a_lost_connection() -> None:
    async with line(TLS_OVER_SOCKETS, buffered=True) as it:
        await it.peer.aclose()
        await wait_all_tasks_blocked()
        assert it.recorder.events == ["lost"]


async def test_what_is_written_after_our_end_does_not_leave_in_the_clear() -> None:
    async with line(TLS_OVER_SOCKETS) as it:
        it.transport.end()
        # The end itself waits for a network that is full.
        assert it.unsent() > 0
        for write in it.transport.write, it.transport.write_soon:
            write(b"in the clear")
        assert isinstance(it.peer, TLSPeer)
        assert b"in the clear" not in await read_all(it.peer.stream)


async def test_a_part_of_a_record_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    async with line(TLS_OVER_SOCKETS, buffered=True) as it:
        assert isinstance(it.peer, TLSPeer)
        record = encrypted(it.peer.end, RANDOM[:PLAINTEXT_SIZE])
        await trio.sleep(10)
        await it.peer.stream.send_all(record[:100])
        await wait_all_tasks_blocked()
        assert it.recorder.data == b""
        assert it.transport.received_at == 10
