"""Any bytes, cut anywhere and read at any pace, come to the same, which is what others make of them too."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.protocol.ends import Link, Received, arriving, links, receive, take, uncompressed_links
from tests.protocol.frames import CLOSE, PING, frame, frames_of
from tests.protocol.others import read_by_websockets, read_by_wsproto, websockets_end
from tests.protocol.pieces import EFFORT, bytewise, cut, cuts, whole
from tests.protocol.scripts import LIMITED, Script, any_scripts, controls, messages, right_scripts
from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.config import Config
from trio_ws_server.errors import ConnectionClosed
from trio_ws_server.protocol.websocket import Ending, Ping, Pong, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trio_ws_server.protocol.websocket import WebSocketProtocol

UNLIMITED = Config(max_message_size=2**64, max_message_fragments=2**64, deflate_min_size=8)


# Cut anywhere, read at any pace


class Outcome(NamedTuple):
    """All that a stream of bytes leaves to be seen."""

    events: list[Received]
    sent: list[tuple[int, bytes]]
    state: State
    ending: Ending | None
    close: Close
    close_received: Close | None
    close_sent: Close | None
    error: str
    close_once_lost: Close


def outcome(
    link: Link,
    pieces: Iterable[bytes],
    *,
    closing: bool,
    pace: Sequence[int | None] = (None,),
    lent: bool = False,
    one_by_one: bool = False,
) -> Outcome:
    """
    Give the pieces to our end, or lend them; after each, take so many of its events, None: all. At last take the
    rest.
    """
    end = link.end(LIMITED)
    if closing:
        end.send_close(Close(1001, "bye"))
        end.data_to_send()
    events: list[Received] = []
    sent = b""
    for piece, most in zip(pieces, cycle(pace), strict=False):
        with arriving(end, piece, lent=lent):
            events += take(end, most, one_by_one=one_by_one)
        sent += end.data_to_send()
    events += take(end, one_by_one=one_by_one)
    sent += end.data_to_send()
    check_what_can_be_sent(end)
    seen = end.state, end.ending, end.close, end.close_received, end.close_sent, repr(end.closed_error())
    end.receive_eof()
    assert receive(end, frame(PING, masked=not link.client)) == []
    assert (end.state, end.data_to_send()) == (State.CLOSED, b"")
    frames = frames_of(sent, from_client=link.client)
    return Outcome(events, [(each.opcode, bytes(each.data)) for each in frames], *seen, end.close)


def check_what_can_be_sent(end: WebSocketProtocol) -> None:
    """All while the end is open, nothing after."""
    calls: list[Callable[[], bytes]] = [
        lambda: end.send_message("text"),
        lambda: end.send_message(b"binary"),
        lambda: b"".join(end.send_large_message(b"binary")),
        lambda: end.send_ping(b""),
        lambda: end.send_pong(b""),
    ]
    for call in calls:
        if end.state is State.OPEN:
            assert call()
        else:
            with pytest.raises(ConnectionClosed):
                call()


def are_same(link: Link, one: Outcome, other: Outcome) -> bool:
    """
    Compare outcomes.

    A compressed message can be both broken and too large. Which of the two is found first depends on how much of
    it is inflated at once, and so on the cut: that alone may differ.
    """
    if link.deflate is not None and {one.close.code, other.close.code} == {1007, 1009}:
        return (one.events, one.state, one.ending) == (other.events, other.state, other.ending)
    return one == other


@given(any_scripts(), cuts, st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=6), st.booleans())
def test_any_bytes_come_to_the_same_wherever_they_are_cut_and_whenever_their_events_are_taken(
    script: Script, places: Sequence[int], pace: Sequence[int | None], closing: bool
) -> None:
    expected = outcome(script.link, whole(script.stream), closing=closing)
    for found in (
        outcome(script.link, bytewise(script.stream), closing=closing),
        outcome(script.link, cut(script.stream, places), closing=closing),
        outcome(script.link, cut(script.stream, places), closing=closing, pace=pace),
        outcome(script.link, cut(script.stream, places), closing=closing, pace=pace, one_by_one=True),
        outcome(script.link, bytewise(script.stream), closing=closing, pace=pace),
        outcome(script.link, cut(script.stream, places), closing=closing, pace=pace, lent=True),
    ):
        assert are_same(script.link, found, expected), (found, expected)


@given(any_scripts())
def test_any_bytes_are_answered_with_a_close_frame_where_they_end_the_connection_and_else_with_nothing(
    script: Script,
) -> None:
    found = outcome(script.link, whole(script.stream), closing=False)
    match found.ending:
        case None:
            assert (found.state, found.sent) == (State.OPEN, [])
        case Ending.PEER_CLOSE:
            # RFC 6455 section 5.5.1: the code is sent back
            assert found.close_received is not None
            assert found.close == found.close_once_lost == found.close_received
            assert found.close_sent == Close(found.close_received.code)
            assert found.sent == [(CLOSE, payload_of(found.close_sent))]
        case ending:
            assert ending is Ending.PROTOCOL_ERROR
            assert found.close_received is None
            assert found.close == found.close_once_lost == found.close_sent
            assert found.close.code in {1002, 1007, 1008, 1009}
            assert found.close.reason
            assert found.sent == [(CLOSE, payload_of(found.close))]


def payload_of(close: Close) -> bytes:
    if close.code == CloseCode.NO_STATUS_RCVD:
        return b""
    return close.code.to_bytes(2) + close.reason.encode()


@given(any_scripts())
def test_once_we_have_sent_a_close_frame_only_pongs_are_received_and_nothing_more_is_sent(
    script: Script,
) -> None:
    found = outcome(script.link, whole(script.stream), closing=False)
    closing = outcome(script.link, whole(script.stream), closing=True)
    assert closing.events == [event for event in found.events if isinstance(event, Pong)]
    assert closing.sent == []
    assert closing.state is (State.CLOSED if found.state is State.CLOSED else State.CLOSING)
    assert closing.ending is Ending.LOCAL_CLOSE
    assert closing.close_received == found.close_received
    assert closing.close == (found.close_received or Close(1001, "bye"))


# As others read


@given(right_scripts(), cuts)
def test_messages_are_put_together_whatever_their_fragments_and_wherever_they_are_cut(
    script: Script, places: Sequence[int]
) -> None:
    end = script.link.end(UNLIMITED)
    assert receive(end, *cut(script.stream, places)) == script.received
    assert (end.state, end.data_to_send()) == (State.OPEN, b"")


@settings(max_examples=300 * EFFORT)
@given(right_scripts(), cuts)
def test_all_is_received_up_to_the_first_message_that_breaks_a_limit(
    script: Script, places: Sequence[int]
) -> None:
    limits = Config(max_message_size=5, max_message_fragments=3)
    end = script.link.end(limits)
    received = receive(end, *cut(script.stream, places))
    assert received == script.received[: len(received)]
    faults = [extent.breaks(limits) for extent in script.extents]
    if any(faults):
        within_limits = [bool(fault) for fault in faults].index(True)
        assert sum(isinstance(each, str | bytes) for each in received) == within_limits
        assert end.close.code in faults[within_limits]
    else:
        assert (received, end.state) == (script.received, State.OPEN)


def read_by_us(link: Link, *pieces: bytes) -> tuple[list[Received | Close], Ending | None]:
    """Return what we make of a stream, errors as their code, and how it ended."""
    end = link.end(UNLIMITED)
    events: list[Received | Close] = [*receive(end, *pieces)]
    if end.state is State.CLOSED:
        events.append(end.close_received or Close(end.close.code))
    return events, end.ending


# Control frames within a compressed message make wsproto lose its place, and final blocks end the connection's
# compression for it, as they do for websockets.


@given(right_scripts(with_controls=False, with_final_blocks=False), cuts)
def test_what_is_compressed_means_to_us_what_it_means_to_wsproto(
    script: Script, places: Sequence[int]
) -> None:
    events, _ = read_by_us(script.link, *cut(script.stream, places))
    assert events == read_by_wsproto(script.link, script.stream)


@given(right_scripts(with_final_blocks=False), cuts)
def test_what_is_compressed_means_to_us_what_it_means_to_the_websockets_library(
    script: Script, places: Sequence[int]
) -> None:
    events, _ = read_by_us(script.link, *cut(script.stream, places))
    assert events == read_by_websockets(script.link, script.stream)


@given(any_scripts(uncompressed_links), cuts)
def test_any_bytes_mean_to_us_what_they_mean_to_wsproto(script: Script, places: Sequence[int]) -> None:
    events, _ = read_by_us(script.link, *cut(script.stream, places))
    # wsproto takes it for no code at all
    assume(not any(isinstance(event, Close) and event.code == CloseCode.BAD_GATEWAY for event in events))
    assert events == read_by_wsproto(script.link, script.stream)


@given(any_scripts(uncompressed_links), cuts)
def test_bytes_in_which_nothing_is_wrong_mean_to_us_what_they_mean_to_the_websockets_library(
    script: Script, places: Sequence[int]
) -> None:
    events, ending = read_by_us(script.link, *cut(script.stream, places))
    # it does not look for all mistakes, nor at all of them at the same time
    assume(ending is not Ending.PROTOCOL_ERROR)
    assert events == read_by_websockets(script.link, script.stream)


# As others write


@given(links, st.lists(messages | controls, max_size=6), st.booleans())
def test_others_receive_what_we_send(link: Link, sent: list[Received], large: bool) -> None:
    end = link.end(UNLIMITED)
    stream = b""
    for each in sent:
        match each:
            case Ping(payload):
                stream += end.send_ping(payload)
            case Pong(payload):
                stream += end.send_pong(payload)
            case message if large:
                stream += b"".join(end.send_large_message(message))
            case message:
                stream += end.send_message(message)
    peer = link._replace(client=not link.client)
    assert read_by_websockets(peer, stream) == read_by_wsproto(peer, stream) == sent


@given(links, st.lists(messages | controls, max_size=6), cuts)
def test_we_receive_what_the_websockets_library_sends(
    link: Link, sent: list[Received], places: Sequence[int]
) -> None:
    peer = websockets_end(link._replace(client=not link.client))
    for each in sent:
        match each:
            case Ping(payload):
                peer.send_ping(payload)
            case Pong(payload):
                peer.send_pong(payload)
            case str():
                peer.send_text(each.encode())
            case _:
                peer.send_binary(each)
    end = link.end(UNLIMITED)
    assert receive(end, *cut(b"".join(peer.data_to_send()), places)) == sent
