"""Two ends of ours agree, whatever they do, in any order, and however the network delays, cuts and loses it."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.ends import Link, Received, links, take
from tests.protocol.others import read_by_websockets
from tests.protocol.pieces import EFFORT
from tests.protocol.scripts import controls, messages
from trio_ws_server.close_codes import Close
from trio_ws_server.config import MIB, Config
from trio_ws_server.errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from trio_ws_server.protocol.websocket import Ending, Ping, Pong, State

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from hypothesis.strategies import SearchStrategy

    Moves = Mapping[State, State]

CONFIG = Config(max_message_size=MIB, deflate_min_size=1)
LARGE: list[str | bytes] = ["ä" * 33_000, bytes(70_000), random.Random(0).randbytes(40_000)]
"""Large enough to be compressed ahead."""

TO_CLOSED = {State.OPEN: State.CLOSED, State.CLOSING: State.CLOSED}


class Party:
    """One end, the bytes under way to it, and what must be true of it at any time."""

    peer: Party

    def __init__(self, link: Link) -> None:
        self.end = link.end(CONFIG)
        self.link = link
        self.arriving = b""
        self.sent: list[Received] = []
        self.received: list[Received] = []
        self.received_late: list[Received] = []
        """What came once a close frame was sent: nothing but pongs."""
        self.compressing: tuple[str | bytes, Generator[None]] | None = None
        self.is_gone = False
        self.stopped_listening = False
        """Whether it was closed before the peer's close frame came."""
        self._sent_bytes = b""
        self._close_frame_sent = False

    def send(self, what: Received) -> None:
        """Send a ping or pong at any time, a message unless a large one is being compressed."""
        match what:
            case Ping(payload):
                self._send(what, lambda: self.end.send_ping(payload))
            case Pong(payload):
                self._send(what, lambda: self.end.send_pong(payload))
            case message if self.compressing is None:
                self._send(what, lambda: self.end.send_message(message))

    def _send(self, what: Received, call: Callable[[], bytes]) -> None:
        state = self.end.state
        if state is State.OPEN:
            self._write(call())
            self.sent.append(what)
        else:
            with pytest.raises(ConnectionClosed) as caught:
                call()
            check_error(caught.value)
        self._check_move(state, {})

    def send_large(self, message: str | bytes, steps: int) -> None:
        """Begin compressing the message, or go on with the one before; send it when that is done."""
        if self.compressing is None:
            if len(message) <= self.end.steps_above:
                self.send(message)
                return
            self.compressing = message, self.end.compress_ahead(message)
        message, compression = self.compressing
        if sum(1 for _ in zip(range(steps), compression, strict=False)) < steps:
            self.compressing = None
            self.send(message)

    def stop_compressing(self) -> None:
        if self.compressing is not None:
            self.compressing[1].close()
            self.compressing = None

    def close(self, close: Close) -> None:
        state = self.end.state
        self.end.send_close(close)
        self._check_move(state, {State.OPEN: State.CLOSING}, Ending.LOCAL_CLOSE)

    def fail(self, code: int, reason: str, ending: Ending) -> None:
        state = self.end.state
        self.end.fail(code, reason, ending)
        self.stopped_listening |= state is not State.CLOSED
        self._check_move(state, TO_CLOSED, ending)

    def lose(self) -> None:
        """Have the network lose the connection, and what is under way to this end."""
        state = self.end.state
        self.is_gone = True
        self.arriving = b""
        self.end.receive_eof()
        self.stopped_listening |= state is not State.CLOSED
        self._check_move(state, TO_CLOSED, Ending.LOST)

    def take(self, size: int, most: int | None = None) -> None:
        """Receive so many bytes, and take what so many frames bring."""
        state, had_close_frame = self.end.state, self.end.close_received is not None
        piece, self.arriving = self.arriving[:size], self.arriving[size:]
        self.end.receive_data(piece)
        events = take(self.end, most)
        if state is State.OPEN:
            self.received += events
            assert self.received == self.peer.sent[: len(self.received)]
        else:
            self.received_late += events
            pongs = [each for each in self.peer.sent[len(self.received) :] if isinstance(each, Pong)]
            assert self.received_late == pongs[: len(self.received_late)]
        closes = self.end.close_received is not None and not had_close_frame
        self._check_move(state, TO_CLOSED if closes else {}, Ending.PEER_CLOSE)
        if closes and state is State.OPEN:
            # RFC 6455 section 5.5.1
            assert self.end.close_sent == Close(self.end.close.code)

    def _write(self, data: bytes) -> None:
        assert not self._close_frame_sent
        self._sent_bytes += data
        if not self.peer.is_gone:
            self.peer.arriving += data

    def _check_move(self, state: State, moves: Moves, ending: Ending | None = None) -> None:
        """Send the close frame, if there is one; check that the state changed only as it should."""
        assert self.end.state is moves.get(state, state)
        if state is State.OPEN:
            assert self.end.ending is (None if self.end.state is State.OPEN else ending)
        else:
            assert self.end.ending is not None
        if data := self.end.data_to_send():
            assert state is State.OPEN
            self._write(data)
            self._close_frame_sent = True
        assert self._close_frame_sent is (self.end.close_sent is not None)
        self._check_close()

    def _check_close(self) -> None:
        """RFC 6455 sections 7.1.5 and 7.1.6."""
        end = self.end
        if end.close_received is not None:
            assert end.close == end.close_received == self.peer.end.close_sent
        elif end.close_sent is not None and end.ending is not Ending.LOST:
            assert end.close == end.close_sent
        else:
            assert end.close == Close(1006)

    def check_what_was_sent(self) -> None:
        """The `websockets` library reads from the bytes what was sent, and nothing more."""
        closes = [] if self.end.close_sent is None else [self.end.close_sent]
        assert read_by_websockets(self.peer.link, self._sent_bytes) == self.sent + closes

    def check_agreement(self) -> None:
        """All that was under way has arrived."""
        if self.stopped_listening or self.peer.is_gone:
            return
        assert self.end.close_received == self.peer.end.close_sent
        if self.end.ending is Ending.LOCAL_CLOSE:
            late = self.peer.sent[len(self.received) :]
            assert self.received_late == [each for each in late if isinstance(each, Pong)]
        else:
            assert self.received == self.peer.sent


def check_error(error: ConnectionClosed) -> None:
    codes = {close and close.code for close in (error.received, error.sent)}
    if error.received is not None and codes <= {1000, 1001, 1005}:
        assert isinstance(error, ConnectionClosedOK)
    else:
        assert isinstance(error, ConnectionClosedError)


def _step(method: Callable[..., None], **arguments: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """One of the two does something: whether it is the client, and what it does."""
    return st.tuples(st.booleans(), st.builds(partial, st.just(method), **arguments))


talking = [
    _step(Party.send, what=messages | controls),
    _step(Party.send_large, message=st.sampled_from(LARGE), steps=st.integers(1, 4)),
    _step(Party.stop_compressing),
    _step(
        Party.take, size=st.integers(0, 40) | st.sampled_from([1000, MIB]), most=st.none() | st.integers(0, 3)
    ),
]
ending = [
    _step(
        Party.close,
        close=st.builds(
            Close, st.sampled_from([1000, 1001, 1011, 1014, 4999]), st.sampled_from(["", "ä" * 61])
        )
        | st.just(Close(1005)),
    ),
    _step(
        Party.fail,
        code=st.sampled_from([1008, 1011]),
        reason=st.sampled_from(["", "ä" * 100]),
        ending=st.sampled_from([Ending.PROTOCOL_ERROR, Ending.LOST]),
    ),
    _step(Party.lose),
]
# Most would end before they have begun, if they could at any time.
sequences = st.tuples(
    st.lists(st.one_of(talking), min_size=8, max_size=30), st.lists(st.one_of(talking + ending), max_size=15)
).map(lambda parts: parts[0] + parts[1])


@settings(max_examples=150 * EFFORT)
@given(links, sequences)
def test_two_ends_agree_whatever_they_do_and_however_it_is_delayed_and_cut(
    link: Link, steps: list[tuple[bool, partial[None]]]
) -> None:
    parties = server, client = Party(link._replace(client=False)), Party(link._replace(client=True))
    server.peer, client.peer = client, server
    for client_does_it, step in steps:
        step(parties[client_does_it])
    # What is under way arrives, and then the answer to a close frame in it.
    for party in parties * 2:
        party.take(len(party.arriving))
    for party in parties:
        party.stop_compressing()
        party.check_what_was_sent()
        party.check_agreement()
