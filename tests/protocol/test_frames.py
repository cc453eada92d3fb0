"""Frames that are whole messages, and masks, as wsproto and the `websockets` library know them."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.speedups import apply_mask
from wsproto.frame_protocol import XorMaskerSimple

from tests.protocol.ends import Link
from tests.protocol.frames import MASK, frame, header
from tests.protocol.frames import TEXT as TEXT_OPCODE
from tests.protocol.others import read_by_websockets, read_by_wsproto
from trio_ws_server.close_codes import Close
from trio_ws_server.protocol import frames
from trio_ws_server.protocol.frames import (
    BINARY,
    CLOSE,
    COMPRESSED,
    MASKED,
    PING,
    PONG,
    TEXT,
    close_payload,
    encode,
    encode_shared,
    locate,
    simple_kinds,
)
from trio_ws_server.protocol.websocket import Ping, Pong

if TYPE_CHECKING:
    from collections.abc import Callable

    Mask = Callable[[bytes, bytes], bytes]

pytestmark = pytest.mark.usefixtures("masking")

SIZES = [0, 1, 125, 126, 2**16 - 1, 2**16]
keys = st.binary(min_size=4, max_size=4)


# Masks


@given(st.binary(max_size=40) | st.binary(min_size=1000, max_size=1100), keys)
def test_a_mask_is_what_it_is_to_wsproto(masking: Mask, data: bytes, key: bytes) -> None:
    masked = masking(data, key)
    assert masked == bytes(XorMaskerSimple(key).process(bytearray(data)))
    assert masking(masked, key) == data


@pytest.mark.parametrize("size", [*range(10), *range(1020, 1030), 2**16 + 3])
def test_a_mask_of_any_length_is_what_it_is_to_wsproto(masking: Mask, size: int) -> None:
    data = bytes(place * 7 % 256 for place in range(size))
    assert masking(data, b"\x00\x7f\x80\xff") == XorMaskerSimple(b"\x00\x7f\x80\xff").process(bytearray(data))


# Where a frame is


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_located_among_others(size: int, masked: bool) -> None:
    payload = bytes(size)
    stream = b"before" + frame(TEXT_OPCODE, payload, masked=masked) + b"behind"
    found = locate(stream, 6)
    assert found is not None
    kind, body, end = found
    assert kind == (TEXT | MASKED if masked else TEXT)
    assert stream[end:] == b"behind"
    assert stream[body - 4 : body] == MASK if masked else body == len(header(TEXT_OPCODE, size)) + 6
    assert end - body == size


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_located_as_soon_as_its_length_has_come(size: int) -> None:
    head = header(TEXT_OPCODE, size)
    for cut_at in range(len(head)):
        assert locate(head[:cut_at], 0) is None
    assert locate(head, 0) == (TEXT | MASKED, len(head) + 4, len(head) + 4 + size)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_simple_are_frames_with_the_right_mask_that_are_whole_messages_or_control_frames(
    compressed: bool, masked: bool
) -> None:
    simple = {frame(opcode, masked=masked)[0] for opcode in (1, 2, 8, 9, 10)}
    if compressed:
        simple |= {frame(opcode, masked=masked, rsv=4)[0] for opcode in (1, 2)}
    for first in range(256):
        for mask_bit in (False, True):
            found = locate(bytes([first, mask_bit << 7]), 0)
            assert found is not None
            is_simple = found[0] in simple_kinds(masked=masked, compressed=compressed)
            assert is_simple is (first in simple and mask_bit is masked)


@pytest.mark.parametrize(
    "start",
    [
        b"\x82\x7e\x00\x7d",
        b"\x82\x7f" + (2**16 - 1).to_bytes(8, "big"),
        b"\x82\x7f" + (2**63).to_bytes(8, "big"),
        b"\x89\x7e",
        b"\x8a\x7f",
        b"\x88\x7e",
        b"\x83\x7e",
    ],
    ids=[
        "two bytes for one",
        "eight bytes for two",
        "64 bits",
        "a long ping",
        "a long pong",
        "a long close",
        "reserved",
    ],
)
def test_a_frame_whose_length_is_wrong_is_not_simple_as_soon_as_that_shows(start: bytes) -> None:
    assert locate(start[:-1], 0) is None
    found = locate(start, 0)
    assert found is not None
    assert found[0] not in simple_kinds(masked=False, compressed=True)


# What is sent


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_is_what_others_read(size: int, masked: bool) -> None:
    message = b"a" * size
    sent = encode(BINARY, message, masked=masked)
    peer = Link(client=not masked, deflate=None)
    assert read_by_wsproto(peer, sent) == read_by_websockets(peer, sent) == [message]


@pytest.mark.parametrize("masked", [False, True])
def test_frames_of_all_kinds_are_what_others_read(masked: bool) -> None:
    sent = encode(PING, b"a", masked=masked) + encode(PONG, b"", masked=masked)
    sent += encode(BINARY, b"b", masked=masked) + encode(TEXT, "ä".encode(), masked=masked)
    sent += encode(CLOSE, close_payload(Close(4999, "ä")), masked=masked)
    peer = Link(client=not masked, deflate=None)
    assert read_by_wsproto(peer, sent) == [Ping(b"a"), Pong(b""), b"b", "ä", Close(4999, "ä")]


def test_a_compressed_frame_says_so() -> None:
    assert encode(TEXT | COMPRESSED, b"a") == frame(TEXT_OPCODE, b"a", rsv=4, masked=False)


def test_each_masked_frame_has_a_key_of_its_own() -> None:
    assert len({encode(TEXT, b"a" * 100, masked=True)[2:6] for _ in range(20)}) > 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unit", ["ä", b"a"], ids=["text", "binary"])
def test_a_frame_for_many_is_what_others_read(unit: str | bytes, size: int) -> None:
    message = unit * size
    frame, payload_size = encode_shared(message)
    assert payload_size == size * (1 + isinstance(message, str))
    peer = Link(client=True, deflate=None)
    assert read_by_wsproto(peer, frame) == read_by_websockets(peer, frame) == [message]


@pytest.mark.parametrize("message", ["a" * 100, b"a" * 100, "", b""])
def test_an_object_that_is_sent_again_is_not_encoded_again(message: str | bytes) -> None:
    frame, size = encode_shared(message)
    again = encode_shared(message)
    assert again == (frame, size)
    assert again[0] is frame


def test_another_object_between_or_of_the_other_type_is_sent_as_what_it_is() -> None:
    assert encode_shared("") == (b"\x81\x00", 0)
    assert encode_shared(b"") == (b"\x82\x00", 0)
    assert encode_shared("") == (b"\x81\x00", 0)


def test_a_large_message_is_not_kept_alive_by_having_been_sent() -> None:
    message = bytes(2**16 + 1)
    references = sys.getrefcount(message)
    encode_shared(message)
    assert sys.getrefcount(message) == references


def test_text_that_utf_8_cannot_hold_leaves_what_was_sent_last_as_it_was() -> None:
    encode_shared("a")
    with pytest.raises(UnicodeEncodeError):
        encode_shared("\ud800")
    assert encode_shared("a") == (b"\x81\x01a", 1)


def test_masking_is_in_c_where_that_is_installed_and_else_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec(frames.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.mask is apply_mask
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec.loader.exec_module(module)
    assert module.mask is module.mask_in_python
