"""HTTP/1.1 exchanges: what is a request, what is refused, and how it is answered (RFC 9110, RFC 9112)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol.pieces import bytewise, cut, cuts, whole
from tests.protocol.requests import LIMIT, Read, Reader, chunked, get, lines, post, read
from trio_ws_server.config import Config
from trio_ws_server.protocol.http1 import BadRequest, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    InPieces = Callable[[bytes], Iterator[bytes]]

LIMITED = Config(max_head_size=LIMIT)


def read_one(stream: bytes) -> Read:
    [request] = read(stream)
    assert isinstance(request, Read)
    return request


# Requests that are refused


REFUSED = {
    "Content-Length and Transfer-Encoding": post(
        b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "Transfer-Encoding and Content-Length": post(
        b"TRANSFER-ENCODING: chunked", b"content-length: 5", body=b"0\r\n\r\n"
    ),
    "two different Content-Lengths": post(b"Content-Length: 3", b"Content-Length: 5", body=b"abcde"),
    "two equal Content-Lengths": post(b"Content-Length: 3", b"content-length: 3", body=b"abc"),
    "a list of different Content-Lengths": post(b"Content-Length: 3, 5", body=b"abcde"),
    "a list of equal Content-Lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "a signed Content-Length": post(b"Content-Length: +3", body=b"abc"),
    "a hexadecimal Content-Length": post(b"Content-Length: 0x3", body=b"abc"),
    "an empty Content-Length": post(b"Content-Length:", body=b""),
    "a Content-Length of another script": post("Content-Length: \u0663".encode(), body=b"abc"),
    "a Content-Length too long for any file": post(b"Content-Length: " + b"9" * 30, body=b""),
    "a folded field": get(b"A: b", b" c"),
    "a field folded with a tab": get(b"A: b", b"\tc"),
    "a folded request line": lines(b"GET /", b" HTTP/1.1", b"Host: example.org", b""),
    "a first field with space before it": lines(b"GET / HTTP/1.1", b" Host: example.org", b""),
    "lines that end in LF": b"GET / HTTP/1.1\nHost: example.org\n\n",
    "one line that ends in LF": b"GET / HTTP/1.1\r\nHost: example.org\nA: b\r\n\r\n",
    "a request line that ends in LF": b"GET / HTTP/1.1\nHost: example.org\r\n\r\n",
    "a head that ends in LF": b"GET / HTTP/1.1\r\nHost: example.org\r\n\n",
    "lines that end in CR": b"GET / HTTP/1.1\rHost: example.org\r\r",
    "a CR within a value": get(b"A: b\rTransfer-Encoding: chunked"),
    "a CR before the CR LF": get(b"A: b\r"),
    "an empty line that ends in LF before the request": b"\n" + get(),
    "a CR before the request": b"\r" + get(),
    "no Host": lines(b"GET / HTTP/1.1", b"A: b", b""),
    "no Host in a later HTTP/1": lines(b"GET / HTTP/1.2", b"A: b", b""),
    "two different Hosts": get(b"Host: example.com"),
    "two equal Hosts": get(b"host: example.org"),
    "two Hosts in HTTP/1.0": get(b"Host: example.com", line=b"GET / HTTP/1.0"),
    "a Host with a path": lines(b"GET / HTTP/1.1", b"Host: example.org/a", b""),
    "a Host with spaces": lines(b"GET / HTTP/1.1", b"Host: example.org example.com", b""),
    "a Host with a user": lines(b"GET / HTTP/1.1", b"Host: user@example.org", b""),
    "a Host with a port that is none": lines(b"GET / HTTP/1.1", b"Host: example.org:http", b""),
    "a Host in Unicode": lines(b"GET / HTTP/1.1", "Host: exämple.org".encode(), b""),
    "a space before the colon": get(b"A : b"),
    "a tab before the colon": get(b"A\t: b"),
    "a space before the colon of a length": post(b"Content-Length : 3", body=b"abc"),
    "a space in a field's name": get(b"A b: c"),
    "a field without a name": get(b": b"),
    "a field without a colon": get(b"A"),
    "a null byte in a value": get(b"A: b\0c"),
    "a null byte in a name": get(b"A\0: b"),
    "a control character in a value": get(b"A: b\x01c"),
    "a delete character in a value": get(b"A: b\x7f"),
    "two spaces in the request line": get(line=b"GET  / HTTP/1.1"),
    "a space behind the request line": get(line=b"GET / HTTP/1.1 "),
    "a space in the target": get(line=b"GET /a b HTTP/1.1"),
    "no version": get(line=b"GET /"),
    "no target": get(line=b"GET HTTP/1.1"),
    "a version of another protocol": get(line=b"GET / HTTPS/1.1"),
    "a version with two digits": get(line=b"GET / HTTP/1.10"),
    "a target that is no path": get(line=b"GET a HTTP/1.1"),
    "a target of a query alone": get(line=b"GET ?a HTTP/1.1"),
    "a target with a fragment": get(line=b"GET /a#b HTTP/1.1"),
    "a target that is a URI of another scheme": get(line=b"GET file:///etc/passwd HTTP/1.1"),
    "a target that is a URI without a host": get(line=b"GET http:///a HTTP/1.1"),
    "a target that is a URI with user information": get(line=b"GET http://user@example.org/ HTTP/1.1"),
    "a target that is a URI of an impossible host": get(line=b'GET http://a"<b>/ HTTP/1.1'),
    "a target that is a URI with half an address": get(line=b"GET http://[::1/ HTTP/1.1"),
    "a target that is a URI with a fragment": get(line=b"GET http://example.org/a#b HTTP/1.1"),
    "a target not in ASCII": get(line="GET /ä HTTP/1.1".encode()),
    "a target with a control character": get(line=b"GET /\x7f HTTP/1.1"),
    "a method that is no token": get(line=b"G(T / HTTP/1.1"),
    "an asterisk that is not for OPTIONS": get(line=b"GET * HTTP/1.1"),
    "a Transfer-Encoding in HTTP/1.0": get(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0")
    + b"0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "a space before the request": b" " + get(),
    "a chunk size that is no number": chunked(b"x\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk size": chunked(b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk size with a prefix": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": chunked(b"3\r\nabcd\r\n0\r\n\r\n"),
    "a chunk shorter than its size": chunked(b"3\r\nab\r\n0\r\n\r\n"),
    "a chunk size that ends in LF": chunked(b"3\nabc\r\n0\r\n\r\n"),
    "a chunk that ends in LF": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "a chunk extension with a CR in it": chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "a chunk extension with a LF in it": chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "a chunk extension with a control character in it": chunked(b"3;a=\x1b\r\nabc\r\n0\r\n\r\n"),
    "a control character in a trailer field": chunked(b"0\r\nA: \x08b\r\n\r\n"),
    "a trailer field that ends in LF": chunked(b"0\r\nA: b\nC: d\r\n\r\n"),
    "a trailer section that ends in LF": chunked(b"0\r\nA: b\n\nGET /smuggled HTTP/1.1\r\n\r\n"),
    "an empty trailer section that ends in LF": chunked(b"0\r\n\nGET /smuggled HTTP/1.1\r\n\r\n"),
    "a folded trailer field": chunked(b"0\r\nA: b\r\n c\r\n\r\n"),
    "a space before the colon of a trailer field": chunked(b"0\r\nA : b\r\n\r\n"),
}


@pytest.mark.parametrize("stream", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_or_malformed_request_is_refused_with_400(stream: bytes) -> None:
    assert read(stream) == [HTTPStatus.BAD_REQUEST]
    assert Reader().feed(bytewise(stream)).seen == [HTTPStatus.BAD_REQUEST]


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (get(line=b"CONNECT example.org:80 HTTP/1.1"), HTTPStatus.NOT_IMPLEMENTED),
        (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), HTTPStatus.NOT_IMPLEMENTED),
        (post(b"Transfer-Encoding: identity", body=b""), HTTPStatus.NOT_IMPLEMENTED),
        (
            post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
            HTTPStatus.NOT_IMPLEMENTED,
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        (get(line=b"GET / HTTP/0.9"), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
    ],
)
def test_what_is_clear_but_not_done_here_is_refused_with_the_status_that_says_so(
    stream: bytes, status: HTTPStatus
) -> None:
    assert read(stream) == [status]
    assert Reader().feed(bytewise(stream)).seen == [status]


@pytest.mark.parametrize(
    "stream",
    [b"\x16\x03\x01", b"GET / HTTP/1.1\r\nA: b\nC", b"GET / HTTP/1.1\r\nHost: example.org\r\n "],
    ids=["TLS", "a line that ends in LF", "a folded line"],
)
def test_it_is_refused_before_its_head_is_complete_where_that_is_clear_by_then(stream: bytes) -> None:
    assert read(stream) == [HTTPStatus.BAD_REQUEST]


def test_a_refusal_keeps_being_one() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(chunked(b"0\r\nA: b\n\n" + get()))
    assert exchange.next_request() is not None
    for _ in range(2):
        with pytest.raises(BadRequest, match="CR LF"):
            exchange.next_body()
    assert not exchange.body_complete
    exchange.respond(400, [(b"content-length", b"0")])
    exchange.end_body()
    assert not exchange.reusable


def test_a_refusal_says_what_is_wrong() -> None:
    with pytest.raises(BadRequest, match="perhaps TLS was meant"):
        Exchange(LIMITED, leftover=b"\x16\x03\x01").next_request()


# The size of a head


@pytest.mark.parametrize("ahead", [b"", b"\r\n"], ids=["alone", "behind an empty line"])
@pytest.mark.parametrize("in_pieces", [whole, bytewise])
def test_a_head_may_be_as_large_as_the_limit_and_no_byte_larger(ahead: bytes, in_pieces: InPieces) -> None:
    head = get(b"A: " + b"b" * 100)
    behind = b"\r\n" * 100

    def seen(limit: int) -> list[Read | HTTPStatus]:
        return Reader(limit).feed(in_pieces(ahead + head + behind)).seen

    assert isinstance(seen(len(head))[0], Read)
    assert seen(len(head) - 1) == [HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE]


def test_a_head_over_the_limit_is_refused_before_its_end_comes() -> None:
    assert read(b"GET /" + b"a" * 96, max_head_size=100) == [HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE]
    assert read(b"GET /" + b"a" * 95, max_head_size=100) == []


@pytest.mark.parametrize("in_pieces", [whole, bytewise])
def test_trailer_fields_have_the_same_limit(in_pieces: InPieces) -> None:
    stream = chunked(b"0\r\nA: " + b"b" * 1000 + b"\r\n\r\n")
    assert isinstance(Reader(1010).feed(in_pieces(stream)).seen[0], Read)
    assert Reader(1009).feed(in_pieces(stream)).seen == [HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE]


# The number of fields

FIELDS = [b"A:", b"a: b", b"Cookie: c", b"X: y"]  # and Host, which makes five


@pytest.mark.parametrize("in_pieces", [whole, bytewise])
def test_a_head_may_have_as_many_fields_as_the_limit_and_no_more(in_pieces: InPieces) -> None:
    def seen(limit: int) -> list[Read | HTTPStatus]:
        reader = Reader(max_header_fields=limit)
        return reader.feed(in_pieces(b"\r\n" + get(*FIELDS) + get(*FIELDS))).seen

    assert [type(request) for request in seen(5)] == [Read, Read]
    assert seen(4) == [HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE]


@pytest.mark.parametrize("in_pieces", [whole, bytewise])
@pytest.mark.parametrize("chunks", [b"", b"3\r\nabc\r\n2;x=y\r\nde\r\n"], ids=["no chunk", "two chunks"])
def test_a_trailer_section_has_the_same_limit(chunks: bytes, in_pieces: InPieces) -> None:
    def seen(*fields: bytes) -> list[Read | HTTPStatus]:
        reader = Reader(max_header_fields=4)
        return reader.feed(in_pieces(chunked(chunks + lines(b"0", *fields, b"")))).seen

    assert isinstance(seen(*FIELDS)[0], Read)
    assert seen(*FIELDS, b"Z:") == [HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE]


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\n", chunked(b"1\r\na\r\n0\r\n")], ids=["head", "trailer"]
)
def test_one_field_too_many_is_refused_as_soon_as_it_begins(head: bytes) -> None:
    assert read(head + lines(*FIELDS), max_header_fields=4) == []
    assert read(head + lines(*FIELDS) + b"Z", max_header_fields=4) == [
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    ]


# The host


def test_a_request_for_a_host_that_is_not_served_is_refused_with_421_which_names_it() -> None:
    exchange = Exchange(Config(allowed_hosts=("*.example.com",)), leftover=get())
    with pytest.raises(
        BadRequest, match=r"^host 'example\.org' is not served here \(--allowed-host\)$"
    ) as refused:
        exchange.next_request()
    assert refused.value.status == HTTPStatus.MISDIRECTED_REQUEST


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (get(), True),
        (get(line=b"GET http://example.com/ HTTP/1.1"), False),
        (get(line=b"GET http://EXAMPLE.org.:8000/ HTTP/1.1"), True),
        (lines(b"GET http://example.org/ HTTP/1.1", b"Host: example.com", b""), True),
        (lines(b"GET / HTTP/1.0", b""), False),
        (lines(b"GET http://example.org/ HTTP/1.0", b""), True),
        (lines(b"GET / HTTP/1.1", b"Host:", b""), False),
        (lines(b"OPTIONS * HTTP/1.1", b"Host: example.com", b""), False),
    ],
)
def test_the_host_of_every_request_counts_and_that_of_a_target_in_absolute_form_first(
    request_: bytes, allowed: bool
) -> None:
    [seen] = read(request_, allowed_hosts=("example.org",))
    assert isinstance(seen, Read) if allowed else seen == HTTPStatus.MISDIRECTED_REQUEST


# Requests that are read


def test_a_request_is_read_with_its_fields_in_order_and_duplicates_kept() -> None:
    request = read_one(get(b"Cookie: a", b"X-Empty:", b"cookie:  b \t", line=b"GET /a%20b?c=d HTTP/1.1"))
    fields = [(b"host", b"example.org"), (b"cookie", b"a"), (b"x-empty", b""), (b"cookie", b"b")]
    assert request == Read(b"GET", b"/a%20b?c=d", b"1.1", fields, b"")


@pytest.mark.parametrize(
    "line",
    [
        b"OPTIONS * HTTP/1.1",
        b"GET /a/../b//c?d?e HTTP/1.1",
        b"BREW /pot HTTP/1.1",
        b"GET / HTTP/1.0",
        b"GET / HTTP/1.2",
    ],
)
def test_a_request_line_of_any_form_of_rfc_9112_is_read(line: bytes) -> None:
    method, target, _ = line.split(b" ")
    request = read_one(get(line=line))
    assert (request.method, request.target) == (method, target)


@pytest.mark.parametrize(
    "host", [b"example.org:8000", b"127.0.0.1", b"[::1]:80", b"", b"a_b", b"xn--exmple-cua.org", b"a:"]
)
def test_a_host_may_be_a_name_or_an_address_with_a_port_or_empty(host: bytes) -> None:
    assert (b"host", host) in read_one(lines(b"GET / HTTP/1.1", b"Host: " + host, b"")).headers


@pytest.mark.parametrize(
    ("target", "origin_form", "host"),
    [
        (b"http://example.com/a?b", b"/a?b", b"example.com"),
        (b"HTTPS://Example.com:8080", b"/", b"Example.com:8080"),
        (b"http://example.com?a=/b", b"/?a=/b", b"example.com"),
        (b"http://[2001:db8::1]:80//a%20b;c", b"//a%20b;c", b"[2001:db8::1]:80"),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_target_in_absolute_form_becomes_path_and_query_and_its_authority_the_host(
    target: bytes, origin_form: bytes, host: bytes, version: bytes
) -> None:
    line = b"GET " + target + b" HTTP/" + version
    request = read_one(get(line=line) if version == b"1.1" else lines(line, b""))
    assert request.target == origin_form
    assert [value for name, value in request.headers if name == b"host"] == [host]


def test_http_1_0_needs_no_host() -> None:
    assert read_one(lines(b"GET / HTTP/1.0", b"")).version == b"1.0"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_empty_lines_before_the_request_line_are_ignored_however_they_are_cut(number: int) -> None:
    stream = b"\r\n" * number + get()
    assert read(stream) == Reader().feed(bytewise(stream)).seen == read(get())


def test_pipelined_requests_are_read_one_after_the_other() -> None:
    stream = post(b"Content-Length: 3", body=b"abc") + get() + chunked(b"2\r\nde\r\n0\r\n\r\n") + get()
    bodies = [request.body for request in read(stream) if isinstance(request, Read)]
    assert bodies == [b"abc", b"", b"de", b""]


def test_what_follows_a_request_is_left_over_byte_for_byte() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(get(b"Connection: Upgrade", b"Upgrade: websocket") + b"\x81\x85\r\n\r\n")
    assert exchange.next_request() is not None
    exchange.receive_data(b"more")
    assert exchange.leftover == b"\x81\x85\r\n\r\nmore"
    assert exchange.next_body() == b""
    exchange.receive_data(b", and more")
    assert exchange.leftover == b"\x81\x85\r\n\r\nmore, and more"


def test_the_end_of_a_body_is_told_again_and_again() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(get())
    assert exchange.next_request() is not None
    assert [exchange.next_body(), exchange.next_body()] == [b"", b""]
    exchange.receive_data(get())
    assert exchange.next_body() == b""
    assert exchange.leftover == get()


@pytest.mark.parametrize(
    ("stream", "body"),
    [
        (post(b"Content-Length: 0", body=b""), b""),
        (post(b"Content-Length: 003", body=b"abc"), b"abc"),
        (post(b"Content-Length: 6", body=b"\r\n\n\r a"), b"\r\n\n\r a"),
        (chunked(b"0\r\n\r\n"), b""),
        (chunked(b'3\r\nabc\r\n2;ext="a b"\r\nde\r\n0\r\n\r\n'), b"abcde"),
        (chunked(b"A\r\n0123456789\r\n000\r\n\r\n"), b"0123456789"),
        (chunked(b"5\r\n\r\n\n\r \r\n0\r\nA: b\r\nC: d\r\n\r\n"), b"\r\n\n\r "),
        (post(b"Transfer-Encoding: Chunked", body=b"1\r\na\r\n0\r\n\r\n"), b"a"),
    ],
)
def test_a_body_is_read_whole_whatever_its_framing(stream: bytes, body: bytes) -> None:
    for seen in (read(stream), Reader().feed(bytewise(stream)).seen):
        [request] = seen
        assert isinstance(request, Read)
        assert request.body == body


def test_only_what_was_read_of_a_body_counts_as_read() -> None:
    """Who reads the network pauses by `unread`: pieces that nobody has asked for yet must be in it."""
    exchange = Exchange(LIMITED)
    exchange.receive_data(chunked(b"1\r\na\r\n1\r\nb\r\n"))
    assert exchange.next_request() is not None
    assert exchange.next_body() == b"a"
    exchange.receive_data(b"1\r\nc\r\n" * 1000)
    assert exchange.unread == 6000
    assert exchange.next_body() == b"b"
    assert exchange.unread == 6000


# Properties

ACCEPTED = [
    get(),
    get(b"Connection: Upgrade", b"Upgrade: h2c"),
    get(b"Connection: close"),
    get(line=b"GET /a HTTP/1.0"),
    post(b"Content-Length: 3", b"Expect: 100-continue", body=b"abc"),
    chunked(b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"),
]
edits = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.integers(0, 2),
        st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b":", b"0", b"GET /"]) | st.binary(max_size=2),
    ),
    max_size=2,
)


@st.composite
def streams(draw: st.DrawFn, *, max_size: int = 4) -> bytes:
    """Requests to be accepted and to be refused, with a few bytes of them changed."""
    requests = st.sampled_from([*ACCEPTED, *ACCEPTED, *ACCEPTED, *REFUSED.values()])
    stream = b"".join(draw(st.lists(requests, min_size=1, max_size=max_size)))
    for place, length, replacement in draw(edits):
        stream = stream[:place] + replacement + stream[place + length :]
    return stream


@given(streams() | st.binary(max_size=60), cuts)
@example(b"\r\n\r\n" + get(), [2])
@example(chunked(b"3\r\nabc\r\n0\r\n\r\n"), [68, 69, 70, 71, 72, 73, 74])
@example(chunked(b"0\r\nTransfer-Encoding: a\r\nA: \x01\r\n\r\n"), [])
@example(chunked(b"0\r\nA : b\r\n" + b"A: b\r\n" * 200 + b"\r\n"), [])
def test_any_bytes_are_requests_or_refused_and_the_same_wherever_they_are_cut(
    stream: bytes, places: Sequence[int]
) -> None:
    seen = Reader().feed(whole(stream)).seen
    assert Reader().feed(cut(stream, places)).seen == seen
    assert Reader().feed(bytewise(stream)).seen == seen


@given(streams(max_size=1), cuts, st.integers(1, 60), st.integers(1, 3))
def test_the_limits_of_a_head_are_the_same_wherever_it_is_cut(
    stream: bytes, places: Sequence[int], size: int, fields: int
) -> None:
    def refused(pieces: Iterable[bytes], **limits: int) -> HTTPStatus | None:
        seen = Reader(**limits).feed(pieces).seen
        return seen[0] if seen and isinstance(seen[0], HTTPStatus) else None

    for limits in ({"max_head_size": size}, {"max_header_fields": fields}):
        assert refused(whole(stream), **limits) == refused(cut(stream, places), **limits)


token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=8).map(str.encode)
visible = st.characters(codec="latin-1", min_codepoint=0x21, exclude_categories=["Cc", "Zs"])
value = (
    st.lists(st.text(visible, max_size=6), max_size=3)
    .map(" ".join)
    .map(str.strip)
    .map(lambda text: text.encode("latin-1"))
)
target = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=20
).map(lambda text: b"/" + text.encode())
FRAMING = {b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade", b"expect"}
field = st.tuples(token, value).filter(lambda pair: pair[0].lower() not in FRAMING)
exchanges = st.tuples(
    token.filter(lambda method: method != b"CONNECT"),
    target,
    st.lists(field, max_size=4),
    st.none() | st.lists(st.binary(max_size=20), max_size=4),
    st.booleans(),
)


@given(st.lists(exchanges, min_size=1, max_size=3), cuts)
def test_any_request_that_h11_writes_is_read_back_the_same(
    requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], list[bytes] | None, bool]],
    places: Sequence[int],
) -> None:
    stream = b""
    expected = []
    for method, path, fields, body, in_chunks in requests:
        client = h11.Connection(h11.CLIENT)
        headers = [(b"Host", b"example.org"), *fields]
        if body is not None and in_chunks:
            headers.append((b"Transfer-Encoding", b"chunked"))
        elif body is not None:
            headers.append((b"Content-Length", str(sum(map(len, body))).encode()))
        stream += client.send(h11.Request(method=method, target=path, headers=headers))
        for piece in body or ():
            stream += client.send(h11.Data(data=piece))
        stream += client.send(h11.EndOfMessage())
        names = [(name.lower(), content) for name, content in headers]
        expected.append(Read(method, path, b"1.1", names, b"".join(body or ())))
    assert read(stream, places) == expected


# Responses


def exchange_for(stream: bytes) -> Exchange:
    """Return an exchange whose request has been read whole."""
    exchange = Exchange(LIMITED)
    exchange.receive_data(stream)
    assert exchange.next_request() is not None
    while exchange.next_body():
        pass
    return exchange


def as_client(stream: bytes, method: bytes = b"GET") -> tuple[h11.Response, bytes, bool]:
    """Return the response, its body, and whether another request may follow it, as h11 sees them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "example.org")]))
    client.send(h11.EndOfMessage())
    client.receive_data(stream)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    if event is h11.NEED_DATA:  # the end of the connection is the end of the body
        client.receive_data(b"")
        event = client.next_event()
    assert isinstance(event, h11.EndOfMessage)
    return response, body, client.their_state is h11.DONE


def names(response: h11.Response) -> list[bytes]:
    return [name for name, _ in response.headers]


def test_a_body_without_a_length_is_sent_in_chunks() -> None:
    exchange = exchange_for(get())
    wire = exchange.respond(200, [(b"a", b"b")])
    wire += exchange.send_body(b"abc") + exchange.send_body(b"") + exchange.send_body(b"de")
    wire += exchange.end_body()
    response, body, goes_on = as_client(wire)
    assert response.status_code == 200
    assert response.headers == [(b"a", b"b"), (b"transfer-encoding", b"chunked")]
    assert (body, goes_on) == (b"abcde", True)


def test_a_body_with_a_length_is_sent_as_it_is() -> None:
    exchange = exchange_for(get())
    wire = (
        exchange.respond(200, [(b"Content-Length", b"3")]) + exchange.send_body(b"abc") + exchange.end_body()
    )
    assert wire == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


def test_the_framing_is_for_the_server_to_choose() -> None:
    exchange = exchange_for(get())
    wire = exchange.respond(200, [(b"Transfer-Encoding", b"gzip"), (b"Content-Length", b"0")])
    assert b"gzip" not in wire
    assert exchange.end_body() == b""


def test_to_http_1_0_a_body_without_a_length_ends_with_the_connection() -> None:
    exchange = exchange_for(get(line=b"GET / HTTP/1.0"))
    wire = exchange.respond(200, []) + exchange.send_body(b"abc") + exchange.end_body()
    assert b"\r\nConnection: close\r\n" in wire
    assert wire.endswith(b"\r\n\r\nabc")
    assert not exchange.reusable


def test_a_response_to_head_has_the_fields_of_a_response_to_get_and_no_body() -> None:
    exchange = exchange_for(get(line=b"HEAD / HTTP/1.1"))
    wire = exchange.respond(200, [(b"content-length", b"3")])
    assert (exchange.send_body(b"abc"), exchange.end_body()) == (b"", b"")
    response, body, goes_on = as_client(wire, b"HEAD")
    assert (list(response.headers), body, goes_on) == ([(b"content-length", b"3")], b"", True)
    assert exchange.reusable


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_is_sent_without_framing_and_the_connection_goes_on(status: int) -> None:
    exchange = exchange_for(get())
    wire = exchange.respond(status, [(b"a", b"b")]) + exchange.end_body()
    response, body, goes_on = as_client(wire)
    assert (names(response), body, goes_on) == ([b"a"], b"", True)
    assert exchange.reusable


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (204, [], [b"a"]),
        (304, [], [b"a"]),
        (200, [(b"content-length", b"2")], [b"ab", b"c"]),
        (200, [(b"content-length", b"2")], [b"a"]),
    ],
)
def test_a_body_that_its_head_does_not_allow_is_an_error_and_ends_the_connection(
    status: int, headers: list[tuple[bytes, bytes]], body: list[bytes]
) -> None:
    exchange = exchange_for(get())
    exchange.respond(status, headers)

    def send_body() -> None:
        for piece in body:
            exchange.send_body(piece)
        exchange.end_body()

    with pytest.raises(ValueError, match=r"Content-Length"):
        send_body()
    assert not exchange.response_complete
    assert not exchange.reusable


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (99, []),
        (101, []),
        (1000, []),
        (200, [(b"a b", b"c")]),
        (200, [(b"a", b"b\r\nc: d")]),
        (200, [(b"", b"a")]),
        (200, [(b"content-length", b"a")]),
    ],
)
def test_a_head_that_cannot_be_sent_is_an_error_and_another_can_be_sent_instead(
    status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    exchange = exchange_for(get())
    with pytest.raises(ValueError, match=r"(?i)status|header|content-length"):
        exchange.respond(status, headers)
    assert not exchange.response_started
    assert exchange.respond(500, []).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


def test_a_status_that_nobody_knows_is_sent_without_a_phrase() -> None:
    assert exchange_for(get()).respond(299, []).startswith(b"HTTP/1.1 299 \r\n")


# The connection


@pytest.mark.parametrize(
    ("request_", "headers", "must_close"),
    [
        (get(b"Connection: close"), [], False),
        (get(b"Connection: Keep-Alive, Close"), [], False),
        (get(), [(b"Connection", b"close")], False),
        (get(), [], True),
        (get(), [(b"connection", b"keep-alive")], True),
    ],
)
def test_a_connection_that_either_side_closes_says_so_and_takes_no_other_request(
    request_: bytes, headers: list[tuple[bytes, bytes]], must_close: bool
) -> None:
    exchange = exchange_for(request_)
    exchange.must_close = must_close
    wire = exchange.respond(200, [*headers, (b"content-length", b"0")]) + exchange.end_body()
    _, _, goes_on = as_client(wire)
    assert exchange.response_complete
    assert not exchange.reusable
    assert not goes_on


def test_a_last_response_keeps_its_other_connection_options() -> None:
    """RFC 9110 section 7.8: where there is Upgrade, Connection lists it."""
    exchange = exchange_for(get())
    exchange.must_close = True
    response, _, _ = as_client(
        exchange.respond(426, [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]) + exchange.end_body()
    )
    options = {option for name, option in response.headers if name == b"connection"}
    assert options == {b"upgrade", b"close"}


def test_a_response_is_started_with_its_head_and_complete_with_the_end_of_its_body() -> None:
    exchange = exchange_for(get())

    def state() -> tuple[bool, bool]:
        return exchange.response_started, exchange.response_complete

    states = [state()]
    exchange.respond(200, [])
    states.append(state())
    exchange.send_body(b"a")
    states.append(state())
    exchange.end_body()
    states.append(state())
    assert states == [(False, False), (True, False), (True, False), (True, True)]


def test_a_connection_takes_another_request_only_when_the_one_before_was_read_whole() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(post(b"Content-Length: 3", body=b"ab"))
    assert exchange.next_request() is not None
    exchange.respond(200, [(b"content-length", b"0")])
    exchange.end_body()
    reusable = [exchange.reusable]
    assert (exchange.next_body(), exchange.next_body()) == (b"ab", None)
    reusable.append(exchange.reusable)
    exchange.receive_data(b"c")
    assert (exchange.next_body(), exchange.next_body()) == (b"c", b"")
    assert [*reusable, exchange.reusable] == [False, False, True]


def test_a_refused_request_is_answered_in_a_way_that_any_client_reads() -> None:
    exchange = Exchange(LIMITED, leftover=b"garbage\r\n\r\n")
    with pytest.raises(BadRequest) as refusal:
        exchange.next_request()
    wire = exchange.respond(refusal.value.status, refusal.value.headers) + exchange.send_body(b"why")
    response, body, goes_on = as_client(wire + exchange.end_body())
    assert (response.status_code, body, goes_on) == (400, b"why", False)


def test_a_client_that_waits_for_100_continue_gets_it_before_the_response() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(post(b"Content-Length: 3", b"Expect: 100-Continue", body=b""))
    assert exchange.next_request() is not None
    expected = exchange.continue_expected
    assert exchange.continue_() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (expected, exchange.continue_expected) == (True, False)


def test_a_client_that_sends_its_body_does_not_wait_for_100_continue() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(post(b"Content-Length: 3", b"Expect: 100-continue", body=b"a"))
    assert exchange.next_request() is not None
    assert exchange.next_body() == b"a"
    assert not exchange.continue_expected


def test_a_client_of_http_1_0_does_not_wait_for_100_continue() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(get(b"Content-Length: 3", b"Expect: 100-continue", line=b"POST / HTTP/1.0"))
    assert exchange.next_request() is not None
    assert not exchange.continue_expected


def test_a_client_that_is_answered_does_not_wait_for_100_continue() -> None:
    exchange = Exchange(LIMITED)
    exchange.receive_data(post(b"Content-Length: 3", b"Expect: 100-continue", body=b""))
    assert exchange.next_request() is not None
    exchange.respond(413, [(b"content-length", b"0")])
    assert not exchange.continue_expected
