"""
No request hides in another: each is read where h11 alone, given the connection as a whole, reads it, or is refused.

Where two programs on a connection's way differ in where a request ends, its sender can make the second take for a
request what the first takes for a body (RFC 9112 section 11.2).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers import asgi, serving
from tests.protocol.pieces import bytewise, cut, cuts, whole
from tests.protocol.requests import Read, Reader, chunked, get, lines, post

if TYPE_CHECKING:
    from collections.abc import Sequence

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.org\r\n\r\n"


def h11s_view(stream: bytes) -> tuple[list[Read], list[bytes], bool]:
    """Return the requests that h11 alone reads, what is behind each of them, and whether it refuses the rest."""
    requests: list[Read] = []
    rests: list[bytes] = []
    connection = connected(stream)
    try:
        while isinstance(request := connection.next_event(), h11.Request):
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                break
            requests.append(
                Read(request.method, request.target, request.http_version, list(request.headers), body)
            )
            rests.append(connection.trailing_data[0])
            connection.send(h11.Response(status_code=204, headers=[]))
            connection.send(h11.EndOfMessage())
            if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                break
            connection.start_next_cycle()
            if rests[-1].startswith(b"\r"):
                connection = connected(rests[-1])
    except h11.RemoteProtocolError:
        return requests, rests, True
    return requests, rests, False


def connected(stream: bytes) -> h11.Connection:
    """Return h11's connection with this on it, without empty lines before it, which it does not ignore."""
    while stream.startswith(b"\r\n"):
        stream = stream[2:]
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(stream) + 1)
    if stream != b"\r":
        connection.receive_data(stream)
    return connection


FIELDS = [
    *(b"Content-Length: %s" % value for value in (b"5", b"0", b"05", b"4", b"5, 5", b"5,6", b"+5", b"-5")),
    *(
        b"Content-Length: %s" % value
        for value in (b"0x5", b"", b"5 5", b"5\x0b", b"\xb2", b"1" * 19, b"1" * 40)
    ),
    *(
        b"Content-Length%s5" % colon
        for colon in (b":", b" : ", b"\t: ", b":\t", b"\0: ", b":\r\n ", b"\r\n: ")
    ),
    *(b"Transfer-Encoding: %s" % value for value in (b"chunked", b"CHUNKED", b"xchunked", b"identity", b"")),
    *(
        b"Transfer-Encoding: %s" % value
        for value in (b"gzip, chunked", b"chunked, gzip", b"chunked, chunked")
    ),
    *(b"Transfer-Encoding: %s" % value for value in (b"chunked,", b",chunked", b"chunked;q=1", b'"chunked"')),
    *(
        b"Transfer-Encoding: %s" % value
        for value in (b"\x0bchunked", b"chunked\x0c", b"chun\0ked", b"\xa0chunked")
    ),
    *(
        b"Transfer-Encoding%schunked" % colon
        for colon in (b":", b" : ", b":\t", b":\r\n ", b"\r\n: ", b"\0: ")
    ),
    *(
        b"X: y%sTransfer-Encoding: chunked" % end
        for end in (b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\0", b"\x0b")
    ),
    *(b"X: y%sContent-Length: 5" % end for end in (b"\n", b"\r", b"\r\n ", b"\r\r\n", b"\n\r\n", b"\x85")),
    *(b"Connection: %s" % value for value in (b"close", b"keep-alive", b"content-length", b"upgrade")),
    *(b"Transfer_Encoding: chunked", b"X-Transfer-Encoding: chunked", b" Transfer-Encoding: chunked"),
    *(b"Upgrade: h2c", b"Expect: 100-continue", b"Host: example.org", b"Host : example.com", b"TE: trailers"),
]
BODIES = [
    *(
        b"abcde",
        b"5\r\nabcde\r\n",
        b"4\r\nabcde\r\n",
        b"6\r\nabcde\r\n",
        b"5\r\nabcde",
        b"5\nabcde\n",
        b"5\rabcde\r",
    ),
    *(
        b"%s\r\nabcde\r\n" % size
        for size in (b"05", b"+5", b"-5", b"0x5", b" 5", b"5 ", b"5\t", b"5\x0b", b"5\0")
    ),
    *(
        b"%s\r\nabcde\r\n" % size
        for size in (b"5_0", b"\xb2", b"0" * 16 + b"5", b"0" * 20 + b"5", b"5,5", b"5.")
    ),
    *(
        b"%s\r\nabcde\r\n" % size
        for size in (b"1" + b"0" * 7 + b"5", b"1" + b"0" * 15 + b"5", b"f" * 20, b"f" * 21)
    ),
    *(
        b"5%s\r\nabcde\r\n" % extension
        for extension in (b";a=b", b" ; a", b';a="\r\n', b";a\nb", b";\rb", b";\0")
    ),
    *(
        b"0\r\n\r\n",
        b"0\r\n",
        b"0\n\n",
        b"0\n\r\n",
        b"0\r\n\n",
        b"00\r\n\r\n",
        b"0;a\r\n\r\n",
        b"-0\r\n\r\n",
        b"\r\n",
    ),
    *(
        b"0\r\n%s\r\n\r\n" % trailer
        for trailer in (b"A: b", b"Content-Length: 9", b"A : b", b" A: b", b"A: b\n")
    ),
    *(SMUGGLED, SMUGGLED[:-2], b"GET /smuggled\r\n", b"X", b"\r", b"\n"),
]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Requests with fields that tell of a body's length in some way, and with bodies of some length."""
    stream = b""
    for _ in range(draw(st.integers(1, 3))):
        fields = draw(st.lists(st.sampled_from(FIELDS), max_size=2))
        line = draw(st.sampled_from([b"POST / HTTP/1.1", b"GET / HTTP/1.1", b"POST / HTTP/1.0"]))
        stream += get(*fields, line=line) + b"".join(draw(st.lists(st.sampled_from(BODIES), max_size=4)))
    return stream


@settings(max_examples=400)
@given(streams())
@example(get() + b"\r\n" + get())
@example(get(b"Upgrade: h2c", b"Connection: Upgrade") + get())
@example(post(b"Content-Length: 5", body=b"abcde") + SMUGGLED)
@example(chunked(b"5\r\nabcde\r\n0\r\nA: b\r\n\r\n") + SMUGGLED)
def test_every_request_of_a_connection_is_what_h11_alone_reads_there_or_refused(stream: bytes) -> None:
    reader = Reader().feed(whole(stream))
    refused = bool(reader.seen) and isinstance(reader.seen[-1], HTTPStatus)
    seen = reader.seen[:-1] if refused else reader.seen
    requests, rests, h11_refuses = h11s_view(stream)
    assert seen == requests[: len(seen)]
    assert reader.rests == rests[: len(seen)]
    if not refused:
        assert len(seen) == len(requests)
        assert not h11_refuses


@given(streams(), cuts)
def test_where_the_network_cuts_a_connection_changes_none_of_its_requests(
    stream: bytes, places: Sequence[int]
) -> None:
    def requests(reader: Reader) -> list[Read]:
        return [request for request in reader.seen if isinstance(request, Read)]

    reader = Reader().feed(whole(stream))
    for other in (Reader().feed(cut(stream, places)), Reader().feed(bytewise(stream))):
        assert requests(other) == requests(reader)
        assert len(other.seen) == len(reader.seen)


# The classics, each with what else could be read into it

CHUNKED = b"Transfer-Encoding: chunked"

REFUSED = {
    "CL.TE": post(b"Content-Length: %d" % (5 + len(SMUGGLED)), CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": post(
        CHUNKED, b"Content-Length: 4", body=b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"
    ),
    "CL.CL": post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "CL in a list": post(b"Content-Length: 0, %d" % len(SMUGGLED), body=SMUGGLED),
    "CL with a sign": post(b"Content-Length: +%d" % len(SMUGGLED), body=SMUGGLED),
    "CL behind a NUL": post(b"Content-Length: \0%d" % len(SMUGGLED), body=SMUGGLED),
    "CL larger than 64 bits": post(b"Content-Length: %d" % 2**80, body=SMUGGLED),
    "TE behind white space": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE in a folded line": post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE in what may be a folded line": post(
        b"X: y", b" Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "TE behind a bare LF": post(b"X: y\nTransfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE behind a bare CR": post(b"X: y\rTransfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE in HTTP/1.0": get(CHUNKED, line=b"POST / HTTP/1.0") + b"0\r\n\r\n" + SMUGGLED,
    "a head that ends in LF": b"GET / HTTP/1.1\r\nHost: example.org\r\n\n" + SMUGGLED,
    "a chunk's size with a sign": chunked(b"+5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's size below zero": chunked(b"-5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's size with a prefix": chunked(b"0x5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's size behind a space": chunked(b" 5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's size of many digits": chunked(b"0" * 21 + b"5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's size that ends in LF": chunked(b"5\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's extension with a LF": chunked(b"5;\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's extension with a CR": chunked(b"5;\rabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's extension with a NUL": chunked(b"5;\0\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk that ends in two other bytes": chunked(b"5\r\nabcdeXX0\r\n\r\n" + SMUGGLED),
    "a chunk that ends in LF": chunked(b"5\r\nabcde\n0\r\n\r\n" + SMUGGLED),
    "the last chunk ends in LF": chunked(b"0\n\r\n" + SMUGGLED),
    "the trailer section ends in LF": chunked(b"0\r\nA: b\n\n" + SMUGGLED),
    "the trailer section has a folded line": chunked(b"0\r\nA: b\r\n c: d\r\n\r\n" + SMUGGLED),
}


class Recorder:
    """An application that keeps what it is called for, and responds to all of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        self.calls.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


async def calls_and_statuses(stream: bytes) -> tuple[list[tuple[str, bytes]], list[int]]:
    """Return what an application gets of a connection with this on it, and the statuses of the responses."""
    app = Recorder()
    async with serving(asgi(app)) as client:
        await client.send(get(line=b"GET /first HTTP/1.1") + stream)
        await client.send_eof()
        responses = await client.receive_all()
    statuses = re.findall(rb"(?:\A|\r\n\r\n)HTTP/1\.1 ([0-9]{3}) ", responses)
    return app.calls, [int(status) for status in statuses]


@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(stream: bytes) -> None:
    assert await calls_and_statuses(stream) == ([("/first", b"")], [200, 400])


@pytest.mark.parametrize(
    "coding", [b"xchunked", b"identity", b"gzip, chunked", b"chunked, identity", b"chunked,", b"\xa0chunked"]
)
async def test_a_coding_that_is_not_chunked_alone_is_refused(coding: bytes) -> None:
    stream = post(b"Transfer-Encoding: " + coding, body=b"0\r\n\r\n" + SMUGGLED)
    assert await calls_and_statuses(stream) == ([("/first", b"")], [200, 501])


async def test_a_coding_that_is_given_twice_is_refused() -> None:
    stream = post(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED)
    assert await calls_and_statuses(stream) == ([("/first", b"")], [200, 501])


CLEAR = {
    "GET with a body": get(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
    "GET with a chunked body": get(CHUNKED) + b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n",
    "a length that begins with zeros": post(b"Content-Length: 000%d" % len(SMUGGLED), body=SMUGGLED),
    "an offer to speak HTTP/2": post(b"Upgrade: h2c", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "a trailer field with a length": post(CHUNKED, body=b"%x\r\n" % len(SMUGGLED))
    + SMUGGLED
    + b"\r\n0\r\nContent-Length: 0\r\nHost: example.com\r\n\r\n",
    "a field with an underscore": post(
        b"Transfer_Encoding: chunked", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED
    ),
    "a length that is said to be hop-by-hop": post(
        b"Connection: content-length", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED
    ),
}


@pytest.mark.parametrize("stream", CLEAR.values(), ids=CLEAR)
async def test_what_is_clear_is_read_as_what_it_says(stream: bytes) -> None:
    calls, statuses = await calls_and_statuses(stream + get(line=b"GET /last HTTP/1.1"))
    assert calls == [("/first", b""), ("/", SMUGGLED), ("/last", b"")]
    assert statuses == [200, 200, 200]


@pytest.mark.parametrize(
    "garbage", [b"X", b"0\r\n\r\n", b"\0", b" " + SMUGGLED, b"\n" + SMUGGLED, b"HTTP/1.1 200 OK\r\n\r\n"]
)
async def test_what_is_behind_a_body_and_no_request_is_refused(garbage: bytes) -> None:
    calls, statuses = await calls_and_statuses(post(b"Content-Length: 5", body=b"abcde" + garbage))
    assert calls == [("/first", b""), ("/", b"abcde")]
    assert statuses == ([200, 200] if garbage == b"X" else [200, 200, 400])


@pytest.mark.parametrize("size", [2**32 + 5, 2**64 + 5, 2**80 - 1])
async def test_a_chunk_of_a_size_that_overflows_an_integer_is_no_small_one(size: int) -> None:
    stream = chunked(b"%x\r\nabcde\r\n0\r\n\r\n" % size + SMUGGLED)
    calls, _ = await calls_and_statuses(stream)
    assert calls == [("/first", b"")]


async def test_what_is_behind_the_last_request_of_a_connection_is_not_read() -> None:
    for last in (get(b"Connection: close"), lines(b"GET / HTTP/1.0", b"")):
        calls, statuses = await calls_and_statuses(last + SMUGGLED)
        assert (calls, statuses) == ([("/first", b""), ("/", b"")], [200, 200])
