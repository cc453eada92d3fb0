"""A connection that is lost: what it brought before, and who waits for it."""

from __future__ import annotations

import ssl
import zlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import CloseConnection, Ping, TextMessage

from tests import networks
from tests.helpers import OneWay, logged_errors, read_all
from tests.networks import SOCKETS
from tests.protocol.frames import BINARY, frame
from tests.tls_ends import SERVER_CONTEXT, End, TLSPeer, client_context
from tests.websocket_peer import KIB, opened, stall
from trio_ws_server.errors import ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.keepalive import Keepalive
from trio_ws_server.protocol.websocket import WebSocketProtocol
from trio_ws_server.serving import serve
from trio_ws_server.transport.poller import Poller

if TYPE_CHECKING:
    from pathlib import Path

    from trio_ws_server.websocket import WebSocket


class Abrupt(OneWay):
    """A stream whose end is an error, as TLS has it where the peer ends TCP without a word."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        if not data:
            raise trio.BrokenResourceError("no close_notify came")
        return data


@pytest.mark.parametrize("pings", [10, 1000])
async def test_frames_that_take_several_turns_are_taken_though_the_end_comes_before_their_last(
    pings: int,
) -> None:
    ours, theirs = memory_stream_pair()
    async with opened(streams=(Abrupt(ours), theirs)) as (websocket, peer):
        await peer.send(*[Ping(b"?")] * pings, TextMessage("last"), CloseConnection(1000))
        await theirs.send_eof()
        assert await websocket.recv() == "last"
        with pytest.raises(ConnectionClosedOK):
            await websocket.recv()


@pytest.mark.usefixtures("network_of_all")
async def test_messages_that_wait_behind_a_full_inbox_are_taken_when_the_connection_is_lost() -> None:
    async with opened(inbox_messages=4) as (websocket, peer):
        await peer.send(*[TextMessage(str(number)) for number in range(300)], CloseConnection(1000))
        await peer.vanish()
        received = [await websocket.recv()]
        for _ in range(2):
            # The first answer makes the network say that the peer is gone.
            with suppress(ConnectionClosedOK):
                await websocket.send("answer")
            await wait_all_tasks_blocked()
        received.extend([message async for message in websocket])
    assert received == [str(number) for number in range(300)]


async def test_of_compressed_messages_as_much_is_taken_as_one_message_may_have() -> None:
    compressor = zlib.compressobj(wbits=-15)
    payload = compressor.compress(bytes(64 * KIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    received = []
    async with opened(per_message_deflate=True, max_message_size=1024 * KIB, inbox_messages=2) as (
        websocket,
        peer,
    ):
        await peer.stream.send_all(frame(BINARY, payload.removesuffix(b"\0\0\xff\xff"), rsv=4) * 40)
        await wait_all_tasks_blocked()
        await peer.vanish()
        await websocket.send("met by nobody")
        await wait_all_tasks_blocked()
        with suppress(ConnectionClosedError):
            while True:
                received.append(await websocket.recv())
    assert received == [bytes(64 * KIB)] * (2 + 1024 // 64)


async def test_a_request_is_told_of_its_tls_though_that_has_failed_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    versions = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        versions.append(scope["extensions"]["tls"]["tls_version"])
        while (await receive())["type"] != "http.disconnect":
            pass

    path = tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, uds=path, tls=SERVER_CONTEXT, lifespan="off"))
        peer = TLSPeer(await trio.open_unix_socket(path), End.of_client(client_context()))
        async with peer:
            await peer.do_handshake()
            peer.end.ssl_object.write(b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n")
            garbage = bytes(100)
            await peer.stream.send_all(peer.end.outgoing.read() + garbage)
            await read_all(peer.stream)
        nursery.cancel_scope.cancel()
    assert versions == [ssl.TLSVersion.TLSv1_3]
    assert logged_errors(caplog) == []


FAULTS = [
    (Keepalive, "stop"),
    (Poller, "forget"),
    (WebSocketProtocol, "receive_eof"),
    (WebSocketProtocol, "data_to_send"),
]


@pytest.mark.parametrize(("owner", "name"), FAULTS, ids=[name for _, name in FAULTS])
async def test_a_task_of_another_connection_that_waits_to_send_is_told_of_a_loss_that_fails_by_a_bug_of_ours(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(networks, "chosen", SOCKETS)

    def faulty(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("a bug of ours")

    async def broadcast(websocket: WebSocket) -> None:
        with pytest.raises(ConnectionClosedError):
            await websocket.send("to all")

    async def be_closed(elsewhere: trio.Nursery) -> None:
        async with opened(lockstep=True) as (websocket, _):
            await stall(websocket)
            elsewhere.start_soon(broadcast, websocket)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(owner, name, faulty)
            await websocket.close(4000)

    with trio.fail_after(100):
        async with trio.open_nursery() as elsewhere:
            with pytest.raises(RuntimeError, match="a bug of ours"):
                await be_closed(elsewhere)
