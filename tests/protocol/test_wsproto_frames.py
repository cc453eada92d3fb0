"""Whatever is read without wsproto comes to what it comes to if wsproto reads all."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import wsproto.events as ws
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.ends import Link, Received, links, receive, uncompressed_links
from tests.protocol.frames import BINARY, CLOSE, PING, TEXT, close_frame
from tests.protocol.others import read_by_wsproto
from tests.protocol.pieces import EFFORT, cut, cuts
from tests.protocol.scripts import LIMITED, Script, any_scripts, close_codes
from trio_ws_server.close_codes import Close
from trio_ws_server.config import Config
from trio_ws_server.protocol.violation import Violation
from trio_ws_server.protocol.websocket import Ending, Ping, Pong, State
from trio_ws_server.protocol.wsproto_frames import WsprotoFrames

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

pytestmark = pytest.mark.usefixtures("masking")


class WsprotoAlone:
    """One end of a connection that wsproto reads all frames of, byte by byte."""

    def __init__(self, link: Link, config: Config, *, closing: bool = False) -> None:
        self.over: Close | int | None = None
        """The peer's close frame, or the code with which the connection has failed."""
        self._frames = WsprotoFrames(config, client=link.client, deflate=link.compression(config))
        self._closing = closing
        self._pieces: list[Any] = []

    def receive(self, data: bytes) -> list[Received]:
        received: list[Received] = []
        for byte in data:
            if self.over is not None:
                break
            try:
                event = self._frames.receive(bytes([byte]))
            except Violation as violation:
                self.over = violation.code
                break
            match event:
                case ws.Message():
                    received += self._message(event)
                case ws.Ping(payload=payload) if not self._closing:
                    received.append(Ping(bytes(payload)))
                case ws.Pong(payload=payload):
                    received.append(Pong(bytes(payload)))
                case Close():
                    self.over = event
        return received

    def _message(self, event: ws.Message[Any]) -> list[Received]:
        self._pieces.append(event.data)
        if not event.message_finished:
            return []
        pieces, self._pieces = self._pieces, []
        return [] if self._closing else [type(event.data)().join(pieces)]


def check_same(
    link: Link, config: Config, pieces: Iterable[bytes], *, closing: bool = False, lent: bool = False
) -> None:
    """Check that each piece brings the same, and ends the connection if it does for wsproto."""
    ours, theirs = link.end(config), WsprotoAlone(link, config, closing=closing)
    if closing:
        ours.send_close(Close(1001))
    for piece in pieces:
        assert receive(ours, piece, lent=lent) == theirs.receive(piece)
        assert (ours.state is State.CLOSED) is (theirs.over is not None)
    if isinstance(theirs.over, int):
        assert closing or ours.ending is Ending.PROTOCOL_ERROR
        assert closing or are_same(link, ours.close.code, theirs.over)
    else:
        assert ours.close_received == theirs.over


def are_same(link: Link, code: int, other: int) -> bool:
    """
    Compare close codes.

    A compressed message can be both broken and too large. Which of the two is found first depends on how much of
    it is inflated at once.
    """
    return code == other or (link.deflate is not None and {code, other} == {1007, 1009})


@settings(max_examples=400 * EFFORT)
@given(any_scripts(), cuts, st.booleans(), st.booleans())
def test_any_bytes_bring_what_they_bring_if_wsproto_reads_all(
    script: Script, places: Sequence[int], closing: bool, lent: bool
) -> None:
    check_same(script.link, LIMITED, cut(script.stream, places), closing=closing, lent=lent)


@given(
    links,
    st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING]), st.integers(0, 3000)), max_size=3),
    st.lists(st.integers(0, 9000), max_size=6),
    st.booleans(),
)
def test_messages_of_any_size_bring_what_they_bring_if_wsproto_reads_all(
    link: Link, sent: Sequence[tuple[int, int]], places: Sequence[int], lent: bool
) -> None:
    script = Script(link)
    for number, (opcode, size) in enumerate(sent):
        payload = Random(number).randbytes(size) if opcode == BINARY else (b"a\xe2\x82\xac" * size)[:size]
        if link.deflate is not None and opcode != PING and size % 2:
            script.compressed_frame(opcode, payload, fin=True)
        else:
            script.frame(opcode, payload)
    check_same(link, Config(), cut(script.stream, places), lent=lent)


def close_payload(code: int | None, reason: bytes) -> bytes:
    return b"" if code is None else code.to_bytes(2) + reason


@settings(max_examples=400 * EFFORT)
@given(
    links,
    st.integers(0, 2),
    st.builds(close_payload, close_codes, st.text(max_size=12).map(str.encode) | st.binary(max_size=124))
    | st.binary(max_size=2),
    st.binary(max_size=8),
    cuts,
    st.booleans(),
)
def test_a_close_frame_says_what_it_says_if_wsproto_reads_it(
    link: Link, fragments: int, payload: bytes, behind: bytes, places: Sequence[int], closing: bool
) -> None:
    script = Script(link)
    script.fragments(BINARY, fragments)
    script.frame(CLOSE, payload)
    script.raw(behind)
    check_same(link, Config(), cut(script.stream, places), closing=closing)


def test_a_close_code_passes_if_it_passes_wsproto() -> None:
    for code in [*range(5010), *range(65526, 65536)]:
        check_same(Link(client=False, deflate=None), Config(), [close_frame(code)])


@given(any_scripts(uncompressed_links))
def test_wsproto_reads_on_as_before_once_it_has_sent_a_close_frame(script: Script) -> None:
    as_before = read_by_wsproto(script.link, script.stream)
    assert read_by_wsproto(script.link, script.stream, closing=True) == as_before
