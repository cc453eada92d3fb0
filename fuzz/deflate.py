"""Any bytes inflate as with plain zlib, to the limit at most; any messages arrive as sent, at websockets too."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import Protocol, Side
from websockets.typing import ExtensionName

from fuzz.pieces import pieces
from trio_ws_server.config import Config
from trio_ws_server.protocol.deflate import Deflate
from trio_ws_server.protocol.websocket import Internal, WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.extensions import Extension
    from websockets.typing import ExtensionParameter

    Message = str | bytes

NAME = ExtensionName("permessage-deflate")
LIMIT = 1000
TAIL = b"\x00\x00\xff\xff"
STEPS = 40_000
"""Bytes that take more than one step to compress."""


def check(data: bytes) -> None:
    """
    Take four bytes as settings, and by the last of them the rest as what a server sends, or as messages to be sent.

    What a server sends is a raw deflate stream, in which every sync flush ends a message. The messages to be sent
    are lines.
    """
    if len(data) < 4:
        return
    settings, rest = data[:4], data[4:]
    match settings[3] >> 4 & 3:
        case 0:
            check_inflation(settings, rest)
        case 1:
            check_messages(*both_ours(settings), messages(settings, rest))
        case 2:
            check_messages(*their_server(settings), messages(settings, rest))
        case 3 if ends := their_client(settings):
            check_messages(*ends, messages(settings, rest))


def config(settings: bytes, window: int, max_message_size: int = 2 * STEPS) -> Config:
    return Config(
        max_message_size=max_message_size,
        deflate_level=settings[2] % 10,
        deflate_mem_level=1 + settings[2] // 10 % 9,
        deflate_min_size=64 if settings[3] & 4 else 0,
        deflate_window_bits=9 + window % 7,
        deflate_server_no_context_takeover=bool(settings[3] & 1),
        deflate_client_no_context_takeover=bool(settings[3] & 2),
    )


# Any bytes


def check_inflation(settings: bytes, stream: bytes) -> None:
    """Give a client the stream twice: each message in one frame, and each in fragments."""
    window, forgets = 8 + settings[1] % 8, bool(settings[3] & 1)
    answer = f"{NAME}; server_max_window_bits={window}" + "; server_no_context_takeover" * forgets
    payloads = stream.split(TAIL)
    for sent in ([[payload] for payload in payloads], [pieces(payload) or [b""] for payload in payloads]):
        deflate = Deflate(config(settings, settings[0], LIMIT))
        deflate.finalize(answer)
        client = WebSocketProtocol(Config(max_message_size=LIMIT), client=True, deflate=deflate)
        received: list[object] = []
        for fragments in sent:
            for place, fragment in enumerate(fragments):
                received += receive(client, frame(fragment, place == 0, place == len(fragments) - 1))
        if client.close_sent:
            received.append(client.close_sent.code)
        expected = list(inflated(sent, window, forgets))
        assert received == expected, f"{received}, plain zlib: {expected}"


def frame(payload: bytes, first: bool, last: bool) -> bytes:
    """Return a frame of a compressed message from a server, of less than 64 KiB."""
    start = last << 7 | first << 6 | (Opcode.BINARY if first else Opcode.CONT)
    size = len(payload)
    return bytes([start, *([size] if size < 126 else [126, *size.to_bytes(2, "big")])]) + payload


def inflated(sent: list[list[bytes]], window: int, forgets: bool) -> Iterator[bytes | int]:
    """Yield the messages, and the code that the connection fails with if it does."""
    stream = None
    for fragments in sent:
        compressed, message = 0, b""
        # Of a payload both damaged and too large, zlib tells one or the other by how much of it comes at once.
        steps = [fragments[0] + TAIL] if len(fragments) == 1 else [*fragments, TAIL]
        for place, data in enumerate(steps, 1):
            is_last = place == len(steps)
            compressed += len(data) - len(TAIL) * is_last
            if compressed > LIMIT:
                yield 1009
                return
            # RFC 7692 section 7.2.3.4: behind a final block no stream has begun that could be flushed.
            while data and (stream or not is_last or data != TAIL):
                stream = stream or zlib.decompressobj(-window)
                try:
                    message += stream.decompress(data, LIMIT + 1 - len(message))
                except zlib.error:
                    yield 1007
                    return
                if len(message) > LIMIT:
                    yield 1009
                    return
                data = stream.unused_data
                if stream.eof:
                    stream = None
        if forgets:
            stream = None
        yield message


# Any messages


class OurEnd:
    """Our end of a connection."""

    def __init__(self, client: bool, settings: Config, deflate: Deflate) -> None:
        self._end = WebSocketProtocol(settings, client=client, deflate=deflate)

    def send(self, message: Message) -> bytes:
        if len(message) > self._end.steps_above:
            # One that is given up leaves nothing behind.
            next(given_up := self._end.compress_ahead(message[::-1]))
            given_up.close()
            for _ in self._end.compress_ahead(message):
                pass
        return self._end.send_message(message)

    def receive(self, data: bytes) -> list[object]:
        return receive(self._end, data)


class TheirEnd:
    """The end of a connection as the websockets library has it."""

    def __init__(self, client: bool, extension: Extension) -> None:
        self._end = Protocol(Side.CLIENT if client else Side.SERVER, max_size=None)
        self._end.extensions = [extension]
        self._message: list[Frame] = []

    def send(self, message: Message) -> bytes:
        return self.send_fragment(message, first=True, last=True)

    def send_fragment(self, fragment: Message, first: bool, last: bool) -> bytes:
        is_text = isinstance(fragment, str)
        data = fragment.encode() if isinstance(fragment, str) else fragment
        if not first:
            self._end.send_continuation(data, last)
        elif is_text:
            self._end.send_text(data, last)
        else:
            self._end.send_binary(data, last)
        return b"".join(self._end.data_to_send())

    def receive(self, data: bytes) -> list[object]:
        received: list[object] = []
        self._end.receive_data(data)
        for event in self._end.events_received():
            assert isinstance(event, Frame)
            self._message.append(event)
            if event.fin:
                content = b"".join(bytes(part.data) for part in self._message)
                received.append(content.decode() if self._message[0].opcode is Opcode.TEXT else content)
                self._message.clear()
        return [*received, self._end.parser_exc] if self._end.parser_exc else received


def receive(end: WebSocketProtocol, data: bytes) -> list[object]:
    end.receive_data(data)
    events: list[object] = [event for event in iter(end.next_event, None) if event is not Internal.EVENT]
    end.give_up()
    return events


End = OurEnd | TheirEnd


def both_ours(settings: bytes) -> tuple[End, End]:
    for_client, for_server = config(settings, settings[0]), config(settings, settings[1])
    client, server = Deflate(for_client), Deflate(for_server)
    answer = server.accept(f"{NAME}; {client.offer()}")
    assert answer is not None
    client.finalize(f"{NAME}; {answer}")
    return OurEnd(True, for_client, client), OurEnd(False, for_server, server)


def their_server(settings: bytes) -> tuple[End, End]:
    for_client = config(settings, settings[0])
    client = Deflate(for_client)
    factory = ServerPerMessageDeflateFactory(
        server_max_window_bits=None if settings[1] & 8 else 9 + settings[1] % 7,
        client_max_window_bits=None if settings[1] & 16 else 9 + settings[1] % 7,
    )
    response, extension = factory.process_request_params(parameters(client.offer()), [])
    client.finalize(build_extension([(NAME, response)]))
    return OurEnd(True, for_client, client), TheirEnd(False, extension)


def their_client(settings: bytes) -> tuple[End, End] | None:
    """Return None where the server declines the offer, which may be the one thing that zlib cannot do."""
    for_server = config(settings, settings[1])
    server = Deflate(for_server)
    factory = ClientPerMessageDeflateFactory(
        server_no_context_takeover=bool(settings[3] & 1),
        server_max_window_bits=None if settings[0] & 8 else 8 + settings[0] % 8,
        client_max_window_bits=True if settings[0] & 16 else 9 + settings[0] % 7,
    )
    answer = server.accept(build_extension([(NAME, factory.get_request_params())]))
    if answer is None:
        assert factory.server_max_window_bits == 8
        return None
    return TheirEnd(True, factory.process_response_params(parameters(answer), [])), OurEnd(
        False, for_server, server
    )


def parameters(text: str) -> list[ExtensionParameter]:
    [(_, parsed)] = parse_extension(f"{NAME}; {text}" if text else NAME)
    return list(parsed)


def messages(settings: bytes, data: bytes) -> list[Message]:
    """Return the lines, as text where they can be; the settings may have the last one repeated to a large one."""
    lines = data.split(b"\n")
    if settings[3] & 8 and lines[-1]:
        lines[-1] *= 1 + STEPS // len(lines[-1])
    found: list[Message] = []
    for line in lines:
        try:
            found.append(line.decode())
        except UnicodeDecodeError:
            found.append(line)
    return found


def check_messages(client: End, server: End, sent: list[Message]) -> None:
    """Send each message both ways, in one frame, and in three or so where the sender makes fragments."""
    for sender, receiver in ((client, server), (server, client)):
        for message in sent:
            received = receiver.receive(sender.send(message))
            assert received == [message], f"{received}, not {message!r}"
            if isinstance(sender, OurEnd):
                continue
            size = 1 + len(message) // 3
            places = range(0, len(message) or 1, size)
            for place in places:
                fragment = message[place : place + size]
                received = receiver.receive(sender.send_fragment(fragment, place == 0, place == places[-1]))
            assert received == [message], f"{received}, not {message!r} in fragments"
