"""The frames that the load sends, as wsproto reads them."""

from __future__ import annotations

import json

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate

from benchmarks import frames


def received(sent: list[bytes], *, deflate: bool = False) -> list[Event]:
    """Return what a server makes of these frames."""
    extensions: list[Extension] = []
    if deflate:
        extension = PerMessageDeflate()
        extension.accept(frames.EXTENSION)
        extensions.append(extension)
    server = Connection(ConnectionType.SERVER, extensions)
    server.receive_data(b"".join(sent))
    return list(server.events())


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_texts_are_whole_messages_of_their_size_at_every_length_of_the_header(size: int) -> None:
    (event,) = received(frames.texts(1, size))

    assert isinstance(event, TextMessage)
    assert len(event.data) == size


def test_texts_differ() -> None:
    events = received(frames.texts(16, 64))

    assert len({event.data for event in events if isinstance(event, TextMessage)}) == 16


def test_binaries_are_whole_messages_that_differ() -> None:
    events = received(frames.binaries(4, 65536))

    assert [len(event.data) for event in events if isinstance(event, BytesMessage)] == [65536] * 4
    assert len({bytes(event.data) for event in events if isinstance(event, BytesMessage)}) == 4


def test_compressed_messages_are_json_of_their_size() -> None:
    events = received(frames.compressed_json(16, 1024), deflate=True)

    texts = [event.data for event in events if isinstance(event, TextMessage)]
    assert {len(text) for text in texts} == {1024}
    assert {json.loads(text)["sequence"] for text in texts} == set(range(16))


def test_compressed_messages_can_be_sent_again_and_again_in_any_order() -> None:
    sent = frames.compressed_json(4, 1024)

    events = received([*sent, *reversed(sent), *sent], deflate=True)

    sequences = [json.loads(event.data)["sequence"] for event in events if isinstance(event, TextMessage)]
    assert sequences == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3]


def test_compressed_messages_are_well_below_their_size() -> None:
    assert all(len(frame) < 700 for frame in frames.compressed_json(16, 1024))


def test_the_close_frame_says_that_all_is_well() -> None:
    (event,) = received([frames.CLOSE_FRAME])

    assert isinstance(event, CloseConnection)
    assert event.code == 1000
