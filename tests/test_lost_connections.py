"""A connection that is lost: what it brought before, and who waits for it."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests import networks
from tests.helpers import logged_errors, read_all
from tests.networks import SOCKETS
from tests.tls_ends import SERVER_CONTEXT, End, TLSPeer, client_context
from tests.websocket_peer import opened, stall
from trio_ws_server.errors import ConnectionClosedError
from trio_ws_server.keepalive import Keepalive
from trio_ws_server.protocol.websocket import WebSocketProtocol
from trio_ws_server.serving import serve
from trio_ws_server.transport.poller import Poller

if TYPE_CHECKING:
    from pathlib import Path

    from trio_ws_server.websocket import WebSocket


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
