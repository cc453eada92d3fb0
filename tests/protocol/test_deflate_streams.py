"""Streams that are made anew for each message, as long as a connection has had little, and kept from then on."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol.memory import held_by
from trio_ws_server.config import Config
from trio_ws_server.protocol.deflate_streams import FED_AGAIN, LITTLE, Compressor, Decompressor
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

TAIL = b"\x00\x00\xff\xff"
HELLO = bytes.fromhex("f2 48 cd c9 c9 07 00")
"""RFC 7692 section 7.2.3.1."""

COMPRESSOR_SIZE = 32 * 1024
"""What a compressor holds with the settings' defaults, and more."""
DECOMPRESSOR_SIZE = 48 * 1024
"""What a decompressor of the largest window holds, and less."""


def compressor() -> Compressor:
    return Compressor(Config())


def decompressor() -> Decompressor:
    return Decompressor(Config().max_message_size)


def inflate(streams: Decompressor, payload: bytes, sizes: Sequence[int] = ()) -> bytes:
    """Inflate a payload in pieces of these sizes, and what is left of it."""
    streams.start()
    inflated = b""
    for size in sizes:
        inflated += streams.inflate(payload[:size], last=False)
        payload = payload[size:]
    return inflated + streams.inflate(payload, last=True)


class OneStream:
    """Inflates all messages with one zlib stream, until a final block ends it."""

    def __init__(self) -> None:
        self.stream: zlib._Decompress | None = None

    def inflate(self, payload: bytes) -> bytes:
        inflated = b""
        rest = payload + TAIL
        while rest:
            if self.stream is None:
                if rest == TAIL:
                    break
                self.stream = zlib.decompressobj(-15)
            inflated += self.stream.decompress(rest)
            rest = self.stream.unused_data
            if self.stream.eof:
                self.stream = None
        return inflated


@st.composite
def payloads(draw: st.DrawFn) -> list[bytes]:
    """Draw payloads that refer back to each other, some of which stop too early or end in noise."""
    stream = zlib.compressobj(wbits=-15)
    drawn = []
    for _ in range(draw(st.integers(1, 12))):
        data = draw(st.binary(max_size=20)) * draw(st.integers(1, 100))
        flush = draw(st.sampled_from([zlib.Z_SYNC_FLUSH] * 5 + [zlib.Z_FINISH]))
        payload = (stream.compress(data) + stream.flush(flush)).removesuffix(TAIL)
        if flush == zlib.Z_FINISH:
            stream = zlib.compressobj(wbits=-15)
        if draw(st.integers(0, 5)) == 0:
            payload = payload[: draw(st.integers(0, len(payload)))] + draw(st.binary(max_size=3))
        drawn.append(payload)
    return drawn


@example([HELLO, b"", HELLO], [])
@given(payloads(), st.lists(st.integers(0, 100), max_size=3))
def test_any_payloads_inflate_as_with_one_stream_for_all(payloads: list[bytes], sizes: list[int]) -> None:
    ours, reference = decompressor(), OneStream()
    for payload in payloads:
        try:
            expected = reference.inflate(payload)
        except zlib.error:
            with pytest.raises(Violation):
                inflate(ours, payload, sizes)
            return
        assert inflate(ours, payload, sizes) == expected


def test_messages_refer_back_to_each_other_before_and_after_streams_are_kept() -> None:
    ours, reference = compressor(), OneStream()
    noise = random.Random(1).randbytes(LITTLE // 4)
    for number in range(10):
        payload = ours.compress(noise)
        assert (len(payload) < 100) is (number > 0)
        assert reference.inflate(payload) == noise


def test_a_compressor_is_held_once_it_has_had_more_than_little() -> None:
    def compress(size: int) -> Compressor:
        ours = compressor()
        for _ in range(4):
            ours.compress(bytes(size // 4))
        return ours

    assert held_by(lambda: compress(LITTLE)) < LITTLE + 1024
    assert held_by(lambda: compress(LITTLE + 4)) > COMPRESSOR_SIZE


def test_a_decompressor_is_held_once_it_has_had_more_than_little() -> None:
    def inflated(count: int) -> Decompressor:
        ours = decompressor()
        for _ in range(count):
            inflate(ours, payload)
        return ours

    # It inflates to its size but for six bytes, and its end is four.
    payload = compressor().compress(random.Random(1).randbytes(LITTLE // 8 - 5))
    assert held_by(lambda: inflated(4)) < LITTLE + 1024
    assert held_by(lambda: inflated(5)) > LITTLE + 1024


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes decompressors are fed with in the course of the test, one call after the other."""
    calls: list[int] = []
    zlibs_own = zlib.decompressobj

    class Counting:
        def __init__(self, bits: int) -> None:
            self._stream = zlibs_own(bits)

        def decompress(self, data: bytes, *limit: int) -> bytes:
            calls.append(len(data))
            return self._stream.decompress(data, *limit)

        def __getattr__(self, name: str) -> object:
            return getattr(self._stream, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    return calls


def test_a_peer_cannot_have_what_it_sent_inflated_again_without_end(fed: list[int]) -> None:
    # Blocks that hold nothing; and final ones, after which the stream begins anew.
    many = b"\x00\x00\x00\xff\xff" * (LITTLE // 10)
    ours, came = decompressor(), 0
    for _ in range(20):
        for payload in [many + b"\x00"] + [b"\x00"] * 100 + [b"\x03\x00"]:
            inflate(ours, payload)
            came += len(payload) + len(TAIL)
    assert came <= sum(fed) <= came + FED_AGAIN


def test_without_context_takeover_nothing_is_held() -> None:
    def exchange() -> object:
        ours, theirs = compressor(), decompressor()
        ours.keeps_context = theirs.keeps_context = False
        assert inflate(theirs, ours.compress(b"Hello")) == b"Hello"
        return ours, theirs

    assert held_by(exchange) < 1024


@pytest.mark.parametrize("payload", [b"\x00", HELLO, b"\x03\x00", zlib.compress(bytes(4000), wbits=-15)])
def test_what_is_held_has_a_bound_however_many_messages_come(payload: bytes) -> None:
    def inflated() -> Decompressor:
        ours = decompressor()
        for _ in range(10_000):
            inflate(ours, payload)
        return ours

    assert held_by(inflated) < DECOMPRESSOR_SIZE
