"""While a large message is compressed others have their turn; whatever happens meanwhile, none leaves in part."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import CloseConnection, TextMessage

from tests.helpers import cancelled_after
from tests.scheduling import Pulse
from tests.websocket_peer import KIB, Peer, compressing
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosed
from trio_ws_server.protocol.deflate_streams import LITTLE

LARGE = random.Random(1).randbytes(100 * KIB).hex()
"""200 KiB that compress to half."""


async def next_text(peer: Peer) -> str:
    pieces = []
    while True:
        match await peer.receive():
            case TextMessage(data=data, message_finished=finished):
                pieces.append(data)
                if finished:
                    return "".join(pieces)
            case other:
                raise AssertionError(f"{other!r} is no text")


async def test_while_a_large_message_is_compressed_others_have_their_turn(nursery: trio.Nursery) -> None:
    pulse = Pulse()
    nursery.start_soon(pulse.run)
    async with compressing() as (websocket, peer):
        await websocket.send(LARGE)
        assert pulse.beats >= len(LARGE) // (64 * KIB)
        assert await next_text(peer) == LARGE
    nursery.cancel_scope.cancel()


async def test_other_senders_wait_for_a_large_message_and_all_arrive_whole(nursery: trio.Nursery) -> None:
    messages = [LARGE, "small " * 20, LARGE[::-1], "tiny", LARGE.upper()]
    async with compressing() as (websocket, peer):
        for message in messages:
            nursery.start_soon(websocket.send, message)
        assert sorted([await next_text(peer) for _ in messages]) == sorted(messages)


@pytest.mark.parametrize("before", ["little " * 20, "much " * LITTLE], ids=["little", "much"])
async def test_a_large_message_cancelled_at_any_step_leaves_the_compressor_as_it_was(before: str) -> None:
    async with compressing() as (websocket, peer):
        await websocket.send(before)
        assert await next_text(peer) == before
        for step in itertools.count():
            cancelled = await cancelled_after(step, lambda: websocket.send(LARGE))
            await websocket.send(f"after {step} " * 20)
            if not cancelled:
                break
            assert await next_text(peer) == f"after {step} " * 20
        assert step > len(LARGE) // (32 * KIB)
        assert await next_text(peer) == LARGE
        assert await next_text(peer) == f"after {step} " * 20


async def test_a_connection_that_is_closed_while_a_large_message_is_compressed_sends_only_the_close(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with compressing() as (websocket, peer):
        errors: list[ConnectionClosed] = []

        async def send() -> None:
            try:
                await websocket.send(LARGE)
            except ConnectionClosed as exc:
                errors.append(exc)

        nursery.start_soon(send)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        websocket.start_closing(Close(1001))
        await wait_all_tasks_blocked()
        assert len(errors) == 1
        assert await peer.receive_all() == [CloseConnection(1001, "")]
