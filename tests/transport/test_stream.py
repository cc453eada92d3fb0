"""The transport over a stream, where it can be told exactly how much is under way, and where streams fail."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_no_checkpoints, memory_stream_pair, wait_all_tasks_blocked

from tests.helpers import OneWay, Recorder
from tests.transport.lines import CONFIG, KIB, line, recorded
from trio_ws_server.transport import open_engine, open_transport


async def test_while_reading_is_paused_no_more_than_a_piece_on_its_way_arrives() -> None:
    async with line(buffered=True) as it:
        await wait_all_tasks_blocked()
        it.transport.pause_reading()
        for piece in b"one ", b"two ", b"three":
            await it.peer.send_all(piece)
            await wait_all_tasks_blocked()
        assert it.recorder.data == b"one "
        it.transport.resume_reading()
        await wait_all_tasks_blocked()
        assert it.recorder.data == b"one two three"


async def test_a_sender_waits_from_above_the_high_water_mark_down_to_the_low_one() -> None:
    async with line() as it, trio.open_nursery() as nursery:
        it.transport.write(bytes(64 * KIB))
        assert not it.congested()
        with assert_no_checkpoints():
            await it.transport.drain()
        it.transport.write(bytes(128 * KIB))
        assert it.congested()
        nursery.start_soon(it.transport.drain)
        await it.peer_reads(128 * KIB)
        await wait_all_tasks_blocked()
        assert it.congested()
        assert nursery.child_tasks
        await it.peer_reads(64 * KIB)
        await wait_all_tasks_blocked()
        assert not it.congested()
        assert not nursery.child_tasks
        assert it.recorder.events == ["writable again"]


@pytest.mark.parametrize("direction", ["send_stream", "receive_stream"])
async def test_a_broken_stream_is_a_lost_connection(direction: str) -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise trio.BrokenResourceError

    ours.send_stream.send_all_hook = break_ if direction == "send_stream" else None
    ours.receive_stream.receive_some_hook = break_ if direction == "receive_stream" else None
    async with recorded(ours) as (transport, recorder):
        transport.write(b"data")
        await wait_all_tasks_blocked()
        assert transport.lost
        assert recorder.events == ["lost"]
    await theirs.aclose()


async def test_a_stream_that_cannot_end_one_side_is_closed_as_a_whole() -> None:
    ours, theirs = memory_stream_pair()
    async with recorded(OneWay(ours)) as (transport, recorder):
        transport.write(b"last words")
        await transport.shutdown(5)
        assert recorder.events == ["lost"]
    assert await theirs.receive_some() == b"last words"
    assert await theirs.receive_some() == b""


class FaultyReceiver(Recorder):
    def data_received(self, data: bytes | memoryview) -> None:
        raise KeyError("a bug")


async def test_an_error_that_no_stream_should_raise_comes_out_and_closes_it() -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise KeyError("a bug")

    ours.send_stream.send_all_hook = break_
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with recorded(ours) as (transport, recorder):
            transport.write(b"data")
            await trio.sleep_forever()
    assert transport.lost
    assert recorder.events == ["lost"]
    await theirs.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


async def test_such_an_error_comes_out_of_a_body_that_ends_with_the_connection_too() -> None:
    ours, theirs = memory_stream_pair()

    async def break_() -> None:
        raise KeyError("a bug")

    ours.receive_stream.receive_some_hook = break_
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with recorded(ours) as (_, recorder):
            while not recorder.events:
                await trio.lowlevel.checkpoint()
    await theirs.aclose()


async def test_an_error_out_of_the_receiver_comes_out_and_closes_the_stream() -> None:
    ours, theirs = memory_stream_pair()
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with open_engine() as engine, open_transport(ours, CONFIG, engine) as transport:
            transport.receiver = FaultyReceiver()
            await theirs.send_all(b"data")
            await trio.sleep_forever()
    await theirs.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()
