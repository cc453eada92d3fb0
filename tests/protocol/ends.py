"""Our end of a WebSocket connection, with the compression agreed on or without, and what it receives."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.frames import payload_size
from trio_ws_server.protocol.websocket import Internal, Ping, Pong, WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_ws_server.config import Config

Received = str | bytes | Ping | Pong


class Link(NamedTuple):
    """Whose end is ours, and with which parameters compression was agreed on; None: it was not."""

    client: bool
    deflate: str | None

    def end(self, config: Config) -> WebSocketProtocol:
        """Return our end, open."""
        return WebSocketProtocol(config, client=self.client, deflate=self.compression(config))

    def compression(self, config: Config) -> Deflate | None:
        """Return what our end compresses and inflates with."""
        if self.deflate is None:
            return None
        deflate = Deflate(config)
        agree = deflate.finalize if self.client else deflate.accept
        agree(f"{deflate.name}{self.deflate}")
        return deflate


_sides = st.booleans()
uncompressed_links = st.builds(Link, _sides, st.none())
links = uncompressed_links | st.builds(
    Link,
    _sides,
    st.sampled_from(
        [
            "",
            "; server_no_context_takeover; client_no_context_takeover",
            "; server_max_window_bits=9; client_max_window_bits=9",
        ]
    ),
)


def take(end: WebSocketProtocol, most: int | None = None, *, one_by_one: bool = False) -> list[Received]:
    """
    Return the messages, pings and pongs of the frames that have come, of so many frames at most.

    They count as handled: if the peer has broken the protocol behind them, the connection fails now.
    """
    events: Iterator[Received | Internal] = iter(end.next_event, None) if one_by_one else in_runs(end, most)
    received = [event for event in islice(events, most) if not isinstance(event, Internal)]
    end.give_up()
    return received


def in_runs(end: WebSocketProtocol, most: int | None) -> Iterator[Received | Internal]:
    """Take messages two at a time where that is possible, and one event where it is not; so many at most."""
    taken = 0
    while most is None or taken < most:
        run, size = end.next_messages(2 if most is None else min(2, most - taken), 1 << 20)
        taken += len(run) or 1
        sizes = [payload_size(message) for message, _ in run]
        assert ([size for _, size in run], size) == (sizes, sum(sizes))
        for message, _ in run:
            yield message
        if not run:
            event = end.next_event()
            if event is None:
                return
            yield event


def receive(end: WebSocketProtocol, *pieces: bytes, lent: bool = False) -> list[Received]:
    """Give bytes to an end, or lend them; return the messages, pings and pongs that they bring."""
    received: list[Received] = []
    for piece in pieces:
        with arriving(end, piece, lent=lent):
            received += take(end)
    return received


@contextmanager
def arriving(end: WebSocketProtocol, piece: bytes, *, lent: bool) -> Iterator[None]:
    """Give bytes to an end, or lend them for the length of the ``with``, after which others are in their place."""
    if lent:
        buffer = bytearray(piece)
        end.receive_data(memoryview(buffer))
        yield
        end.keep_data()
        buffer[:] = b"\xff" * len(buffer)
    else:
        end.receive_data(piece)
        yield
