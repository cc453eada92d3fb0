"""Messages that are sent while others are still unread leave together, and none is left behind."""

from __future__ import annotations

import select
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage

from tests.cancelling import Cancelling
from tests.helpers import read_all
from tests.networks import noted_sends, socket_pair
from tests.protocol.pieces import EFFORT
from tests.scheduling import let_yield, run_paced, undisturbed_waits
from tests.websocket_peer import KIB, Peer, opened
from trio_ws_server.close_codes import Close
from trio_ws_server.errors import ConnectionClosed
from trio_ws_server.transport.socket import HELD_AT_MOST

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Unpack

    from hypothesis.strategies import SearchStrategy
    from trio.abc import Stream

    from trio_ws_server.config import Options
    from trio_ws_server.websocket import WebSocket

    Step = Callable[["Conversation"], Awaitable[None]]


class Witness:
    """Looks at what is between two sockets, and takes no part."""

    def __init__(self, ours: Stream, theirs: Stream) -> None:
        self._ours, self._theirs = map(_duplicate, (ours, theirs))

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def unread(self) -> bytes:
        """Return what the kernel keeps for the peer."""
        try:
            return self._theirs.recv(1024 * KIB, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def has_room(self) -> bool:
        """Return whether the kernel would take more from us."""
        return bool(select.select([], [self._ours], [], 0)[1])


def _duplicate(stream: Stream) -> socket.socket:
    if isinstance(stream, trio.StapledStream):
        stream = stream.send_stream
    assert isinstance(stream, trio.SocketStream)
    return socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type)


def frames(data: bytes) -> list[Event]:
    """Return what a server's frames say."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    return list(client.events())


def texts(data: bytes) -> list[str]:
    """Return the whole messages in a server's frames."""
    messages = [""]
    for event in frames(data):
        if isinstance(event, TextMessage):
            messages[-1] += event.data
            if event.message_finished:
                messages.append("")
    return messages[:-1]


@pytest.fixture
def unpaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls that need not wait never yield, since a test looks at what happens before the next yield."""
    let_yield(monkeypatch, always=False)


@asynccontextmanager
async def with_unread_messages(
    *, full: bool = False, **options: Unpack[Options]
) -> AsyncGenerator[tuple[WebSocket, Peer, Witness]]:
    """Open a connection over sockets whose application has read one of eleven messages, numbered from 0."""
    streams = socket_pair(full=full)
    witness = Witness(*streams)
    async with opened(streams=streams, **options) as (websocket, peer):
        await peer.send(*[TextMessage(str(number)) for number in range(11)])
        assert await websocket.recv() == "0"
        try:
            yield websocket, peer, witness
        finally:
            witness.close()


async def test_a_lone_message_leaves_at_once(unpaced: None) -> None:
    async with with_unread_messages() as (websocket, _, witness):
        for _ in range(10):
            await websocket.recv()
        for number in range(3):
            await websocket.send(str(number))
            assert texts(witness.unread()) == [str(other) for other in range(number + 1)]


async def test_the_answers_to_messages_that_came_together_leave_in_one_send(unpaced: None) -> None:
    async with with_unread_messages() as (websocket, _, witness):
        await websocket.send("0")
        with noted_sends() as sends:
            for _ in range(10):
                message = await websocket.recv()
                assert texts(witness.unread()) == []
                await websocket.send(message)
            assert texts(witness.unread()) == [str(number) for number in range(11)]
        assert len(sends) == 1


async def test_the_pongs_to_pings_that_came_together_leave_in_one_send() -> None:
    pings = [Ping(b"%d" % number) for number in range(10)]
    async with with_unread_messages() as (_, peer, witness):
        with noted_sends() as sends:
            await peer.send(*pings)
            await wait_all_tasks_blocked()
        pongs = witness.unread()
        assert frames(pongs) == [Pong(ping.payload) for ping in pings]
        assert pongs in sends


async def test_the_pong_to_a_lone_ping_leaves_at_once() -> None:
    async with with_unread_messages() as (websocket, peer, witness):
        websocket.data_received(peer.connection.send(Ping(b"ping")))
        assert frames(witness.unread()) == [Pong(b"ping")]


async def test_answers_leave_as_soon_as_the_application_waits_for_more_messages(unpaced: None) -> None:
    application = trio.lowlevel.current_task()
    seen: list[list[str]] = []

    class WhenItWaits(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if task is application:
                seen.append(texts(witness.unread()))

    async with with_unread_messages() as (websocket, peer, witness), trio.open_nursery() as nursery:
        await websocket.send("first")
        for _ in range(10):
            await websocket.recv()
        assert texts(witness.unread()) == []
        instrument = WhenItWaits()
        trio.lowlevel.add_instrument(instrument)
        nursery.start_soon(peer.send, TextMessage("last"))
        assert await websocket.recv() == "last"
        trio.lowlevel.remove_instrument(instrument)
        assert seen[0] == ["first"]


async def test_an_answer_leaves_at_the_end_of_the_pass_though_messages_are_unread(unpaced: None) -> None:
    async with with_unread_messages() as (websocket, _, witness):
        await websocket.send("one")
        await websocket.send("two")
        assert texts(witness.unread()) == []
        await trio.lowlevel.checkpoint()
        assert texts(witness.unread()) == ["one", "two"]


async def test_an_answer_leaves_before_an_application_that_never_yields_again_has_sent_much(
    unpaced: None,
) -> None:
    async with with_unread_messages() as (websocket, _, witness):
        sent = 0
        while not witness.unread():
            assert sent <= HELD_AT_MOST
            await websocket.send("x" * KIB)
            sent += KIB


async def test_what_another_task_sends_does_not_wait_for_the_application_either(unpaced: None) -> None:
    async with with_unread_messages() as (websocket, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.send, "news")
        assert await peer.receive() == TextMessage("news")


@pytest.mark.parametrize("size", [10, 100 * KIB], ids=["small", "large"])
async def test_messages_pings_pongs_and_the_close_frame_keep_their_order(unpaced: None, size: int) -> None:
    async with with_unread_messages() as (websocket, peer, witness):
        await websocket.send("one")
        # What the poller does, and here before the pass is at its end.
        websocket.data_received(peer.connection.send(Ping(b"theirs")))
        await websocket.send("two")
        websocket.send_ping()
        await websocket.send("three")
        await websocket.send("x" * size)
        await websocket.send("four")
        websocket.start_closing(Close(1000))
        events = frames(witness.unread())
        assert [type(event) for event in events if not isinstance(event, TextMessage)] == [
            Pong,
            Ping,
            CloseConnection,
        ]
        order = ["one", "pong", "two", "ping", "three", "x" * size, "four", "close"]
        names = {Pong: "pong", Ping: "ping", CloseConnection: "close"}
        said = [names.get(type(event)) or event.data for event in events]  # type: ignore[attr-defined]
        assert "".join(said) == "".join(order)
        witness.close()
        await peer.vanish()
        await websocket.until_closed()


async def test_who_sends_waits_for_room_though_messages_are_unread(autojump_clock: MockClock) -> None:
    sent = 0
    async with with_unread_messages(full=True, write_high_water=16 * KIB, write_low_water=1) as (
        websocket,
        peer,
        _,
    ):
        with trio.move_on_after(1):
            while True:
                sent += KIB
                await websocket.send("x" * KIB)
        assert 16 * KIB <= sent <= 16 * KIB + HELD_AT_MOST
        received = 0
        while received < sent:
            event = await peer.receive()
            assert isinstance(event, TextMessage)
            received += len(event.data)
        await websocket.send("room again")


# Whatever is done when


class Conversation:
    """An application and a peer, whose every step a test decides."""

    def __init__(self, websocket: WebSocket, peer: Peer) -> None:
        self.websocket = websocket
        self.peer = peer
        self.received = bytearray()
        self.sent: list[str] = []
        """Messages whose sending was not cancelled, in the order in which it ended."""
        self.begun: list[str] = []

    # What the application does.

    async def receive(self) -> None:
        await self.websocket.recv()

    async def send(self, size: int) -> None:
        message = f"{len(self.begun)} {size * 'x'}"
        self.begun.append(message)
        await self.websocket.send(message)
        self.sent.append(message)

    async def give_up_sending(self, size: int, steps: int) -> None:
        await Cancelling(steps)(partial(self.send, size))

    async def ping(self) -> None:
        await self.websocket.ping()

    async def close(self) -> None:
        await self.websocket.close()

    # What the peer does.

    async def peer_sends(self, count: int) -> None:
        await self.peer.send(*[TextMessage(str(number)) for number in range(count)])

    async def peer_pings(self) -> None:
        await self.peer.send(Ping(b"ping"))

    async def peer_reads(self, size: int) -> None:
        self.received += await self.peer.stream.receive_some(size)

    # What both do.

    async def sleep(self) -> None:
        await trio.sleep(1)

    async def do_nothing(self) -> None:
        await trio.lowlevel.checkpoint()

    async def do(self, steps: list[Step]) -> None:
        """Take one step after the other, as long as there is a connection, for each of which there is some time."""
        with suppress(ConnectionClosed):
            for step in steps:
                with trio.move_on_after(2):
                    await step(self)

    async def check_again_and_again(self, witness: Witness) -> None:
        """See to it that whenever all tasks wait, what was sent has left, or there is no room for it."""
        while True:
            await wait_all_tasks_blocked()
            if witness.has_room():
                said = texts(bytes(self.received) + witness.unread())
                assert set(self.sent) <= set(said)
            await trio.sleep(0.5)


def _step(method: Callable[..., Awaitable[None]], **arguments: SearchStrategy[int]) -> SearchStrategy[Step]:
    def bind(values: dict[str, int]) -> Step:
        return lambda conversation: method(conversation, **values)

    return st.fixed_dictionaries(arguments).map(bind)


_sizes = st.sampled_from([0, 10, 500, 10 * KIB, 70 * KIB])
_of_the_application = st.one_of(
    _step(Conversation.receive),
    _step(Conversation.send, size=_sizes),
    _step(Conversation.give_up_sending, size=_sizes, steps=st.integers(0, 10)),
    _step(Conversation.ping),
    _step(Conversation.sleep),
    _step(Conversation.do_nothing),
)
_of_the_peer = st.one_of(
    _step(Conversation.peer_sends, count=st.integers(1, 8)),
    _step(Conversation.peer_pings),
    _step(Conversation.peer_reads, size=st.sampled_from([1, 500, 64 * KIB])),
    _step(Conversation.sleep),
    _step(Conversation.do_nothing),
)
_end = st.lists(_step(Conversation.close), max_size=1)
_applications = st.lists(
    st.tuples(st.lists(_of_the_application, min_size=1, max_size=10), _end).map(
        lambda both: both[0] + both[1]
    ),
    min_size=1,
    max_size=3,
)
_peers = st.lists(_of_the_peer, min_size=1, max_size=15)


async def _converse(full: bool, options: Options, applications: list[list[Step]], peers: list[Step]) -> None:
    streams = socket_pair(full=full)
    witness = Witness(*streams)
    with undisturbed_waits():
        async with opened(streams=streams, **options) as (websocket, peer):
            conversation = Conversation(websocket, peer)
            async with trio.open_nursery() as checks:
                checks.start_soon(conversation.check_again_and_again, witness)
                async with trio.open_nursery() as nursery:
                    for steps in *applications, peers:
                        nursery.start_soon(conversation.do, steps)
                checks.cancel_scope.cancel()
            witness.close()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.close)
                nursery.start_soon(peer.send, CloseConnection(1000))
                conversation.received += await read_all(peer.stream)
                await peer.stream.aclose()
    said = texts(bytes(conversation.received))
    assert len(set(said)) == len(said)
    assert set(conversation.sent) <= set(said) <= set(conversation.begun)


@settings(max_examples=100 * EFFORT)
@given(
    st.booleans(),
    st.fixed_dictionaries(
        {
            "inbox_messages": st.integers(1, 5),
            "write_high_water": st.sampled_from([100, 64 * KIB]),
            "write_low_water": st.just(20),
            "ping_interval": st.none() | st.just(1.0),
            "ping_timeout": st.just(1000.0),
            "close_timeout": st.just(1000.0),
        }
    ),
    _applications,
    _peers,
    st.booleans(),
)
def test_whatever_is_done_when_nothing_that_was_sent_is_left_behind(
    full: bool,
    options: Options,
    applications: list[list[Step]],
    peers: list[Step],
    yielding: bool,
) -> None:
    run_paced(yielding, _converse, full, options, applications, peers)
