"""What a peer may send over a WebSocket connection: scripts of frames, right and wrong."""

from __future__ import annotations

import zlib
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from tests.protocol.ends import Link, Received, links
from tests.protocol.frames import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    errors,
    frame,
    header,
)
from trio_ws_server.config import Config
from trio_ws_server.protocol.websocket import Ping, Pong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hypothesis.strategies import SearchStrategy

LIMITED = Config(max_message_size=40, max_message_fragments=4)
"""The limits that wrong scripts break at times. Right ones keep to no limit."""


class Extent(NamedTuple):
    """What of a message limits count."""

    size: int
    size_under_way: int
    fragments: int

    def breaks(self, limits: Config) -> set[int]:
        """Return the close codes that it deserves."""
        too_large = max(self.size, self.size_under_way) > limits.max_message_size
        too_many = self.fragments > limits.max_message_fragments
        return {code for code, broken in ((1009, too_large), (1008, too_many)) if broken}


class Script:
    """Frames on their way to one end, masked and compressed as the link has it. Each method is a step of it."""

    def __init__(self, link: Link, steps: Iterable[partial[None]] = ()) -> None:
        parameters = link.deflate or ""
        self.link = link
        self.stream = b""
        self.received: list[Received] = []
        """The messages, pings and pongs in it, if all of its steps are right ones."""
        self.extents: list[Extent] = []
        """Of each of these messages."""
        self._masked = not link.client
        self._keeps_context = "no_context_takeover" not in parameters
        self._window_bits = 9 if "window_bits=9" in parameters else 15
        self._begin_compression()
        for step in steps:
            step(self)

    def __repr__(self) -> str:
        return f"<Script over {self.link}: {self.stream.hex()}>"

    # Right.

    def message(
        self,
        message: str | bytes,
        places: Sequence[int],
        controls: Sequence[Ping | Pong | None],
        *,
        compressed: bool,
        final_block: bool,
    ) -> None:
        """Send a message cut into fragments, empty ones too, and after each a ping, a pong or nothing."""
        plain, opcode = (message.encode(), TEXT) if isinstance(message, str) else (message, BINARY)
        payload, rsv = plain, 0
        if compressed and self.link.deflate is not None:
            payload, rsv = self._compressed(plain, final_block=final_block), 4
        self.extents.append(Extent(len(plain), len(payload), len(places) + 1))
        ends = [0, *sorted(min(place, len(payload)) for place in places), len(payload)]
        for number, (start, end) in enumerate(pairwise(ends)):
            last = number == len(places)
            self.frame(opcode, payload[start:end], fin=last, rsv=rsv)
            if last:
                self.received.append(message)
            if number < len(controls) and (control := controls[number]) is not None:
                self.frame(PING if isinstance(control, Ping) else PONG, control.payload)
                self.received.append(control)
            opcode, rsv = CONTINUATION, 0

    def _compressed(self, payload: bytes, *, final_block: bool) -> bytes:
        data = self._compressor.compress(payload)
        if final_block:
            # RFC 7692 section 7.2.3.4
            data += self._compressor.flush(zlib.Z_FINISH) + b"\x00"
        else:
            data += self._compressor.flush(zlib.Z_SYNC_FLUSH).removesuffix(b"\x00\x00\xff\xff")
        if final_block or not self._keeps_context:
            self._begin_compression()
        return data

    def _begin_compression(self) -> None:
        self._compressor = zlib.compressobj(wbits=-self._window_bits)

    # Right or wrong.

    def frame(
        self, opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, rightly_masked: bool = True
    ) -> None:
        self.stream += frame(opcode, payload, fin=fin, rsv=rsv, masked=self._masked is rightly_masked)

    def compressed_frame(self, opcode: int, payload: bytes, *, fin: bool) -> None:
        """Send a frame that is compressed, or that says so where that was not agreed on."""
        self.frame(opcode, self._compressed(payload, final_block=False), fin=fin, rsv=4)

    def declare(self, opcode: int, length: int) -> None:
        """Send the header of a frame alone."""
        self.stream += header(opcode, length, masked=self._masked)

    def fragments(self, opcode: int, count: int) -> None:
        """Send so many fragments of a message without its end."""
        for number in range(count):
            self.frame(CONTINUATION if number else opcode, b"a", fin=False)

    def close(self, code: int | None, reason: bytes) -> None:
        self.stream += close_frame(code, reason, masked=self._masked)

    def error(self, name: str) -> None:
        self.stream += errors(masked=self._masked, limit=LIMITED.max_message_size)[name][1]

    def raw(self, data: bytes) -> None:
        self.stream += data

    def change(self, place: int, byte: int) -> None:
        """Change a byte of what is there already."""
        if place < len(self.stream):
            self.stream = self.stream[:place] + bytes([byte]) + self.stream[place + 1 :]


texts = st.text(max_size=12)
payloads = st.binary(max_size=12)
messages = texts | payloads
controls = st.builds(Ping, payloads) | st.builds(Pong, payloads)


def _step(method: Callable[..., None], **arguments: SearchStrategy[Any]) -> SearchStrategy[partial[None]]:
    return st.builds(partial, st.just(method), **arguments)


def _right_steps(controls: SearchStrategy[Any], final_block: SearchStrategy[bool]) -> SearchStrategy[Any]:
    message = _step(
        Script.message,
        message=messages,
        places=st.lists(st.integers(0, 10), max_size=3),
        controls=st.lists(st.none() | controls, max_size=4),
        compressed=st.booleans(),
        final_block=final_block,
    )
    return st.lists(message, max_size=3)


def right_scripts(*, with_controls: bool = True, with_final_blocks: bool = True) -> SearchStrategy[Script]:
    """Nothing is wrong with these; what others do not know how to read can be left out."""
    steps = _right_steps(
        controls if with_controls else st.none(), st.booleans() if with_final_blocks else st.just(False)
    )
    return st.builds(Script, links, steps)


_characters_and_parts = st.lists(
    st.sampled_from([b"a", b"\xc3", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\xed", b"\xff"]), max_size=6
).map(b"".join)
_notable_codes = [None, 0, 255, *range(998, 1018), 2999, 3000, 4999, 5000, 65535]
close_codes = st.sampled_from(_notable_codes) | st.integers(0, 65535)
_just_too_long = st.integers(LIMITED.max_message_size - 1, LIMITED.max_message_size + 20).map(bytes)
_data_opcodes = st.sampled_from([CONTINUATION, TEXT, BINARY])
_opcodes = st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG])
_fin = st.booleans()

_any_step = st.one_of(
    _step(Script.frame, opcode=_opcodes, payload=payloads | _characters_and_parts, fin=_fin),
    _step(
        Script.frame,
        opcode=st.integers(0, 15),
        payload=payloads,
        fin=_fin,
        rsv=st.integers(0, 7),
        rightly_masked=st.booleans(),
    ),
    _step(Script.frame, opcode=_data_opcodes, payload=payloads, fin=_fin, rsv=st.just(4)),
    _step(
        Script.compressed_frame,
        opcode=_data_opcodes,
        payload=_characters_and_parts | _just_too_long,
        fin=_fin,
    ),
    _step(
        Script.declare,
        opcode=_data_opcodes,
        length=st.sampled_from([LIMITED.max_message_size + 1, 2**16, 2**63 - 1, 2**63]),
    ),
    _step(Script.fragments, opcode=_data_opcodes, count=st.integers(1, LIMITED.max_message_fragments + 1)),
    _step(Script.close, code=close_codes, reason=_characters_and_parts),
    _step(Script.error, name=st.sampled_from(list(errors(masked=True, limit=LIMITED.max_message_size)))),
    _step(Script.raw, data=st.binary(max_size=8)),
    _step(Script.change, place=st.integers(0, 100), byte=st.integers(0, 255)),
)


def any_scripts(links: SearchStrategy[Link] = links) -> SearchStrategy[Script]:
    """Right ones that go wrong, most of them, sooner or later."""
    right_ones, any_ones = _right_steps(controls, st.booleans()), st.lists(_any_step, max_size=3)
    return st.builds(Script, links, st.tuples(right_ones, any_ones).map(lambda steps: steps[0] + steps[1]))
