"""The server without a poller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from benchmarks.streams import take_poller_away
from tests.networks import socket_pair
from trio_ws_server.config import Config
from trio_ws_server.transport import open_engine, open_transport, poller
from trio_ws_server.transport.stream import StreamTransport

if TYPE_CHECKING:
    import pytest


async def test_a_plain_socket_goes_through_the_stream_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "open_selector", poller.open_selector)  # so that it is put back in the end
    take_poller_away()

    near, far = socket_pair(full=False)
    async with near, far, open_engine() as engine:
        assert isinstance(near, trio.SocketStream)
        assert isinstance(open_transport(near, Config(), engine), StreamTransport)
