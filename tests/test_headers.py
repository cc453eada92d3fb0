"""Header fields as the native API shows them."""

from __future__ import annotations

import pytest

from trio_ws_server.headers import Headers, Request

RAW = [(b"Host", b"example.org"), (b"set-cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"X", b"\xff")]


@pytest.fixture
def headers() -> Headers:
    return Headers(RAW)


@pytest.mark.parametrize("name", ["host", "Host", "HOST"])
def test_a_field_is_found_by_its_name_in_any_case(headers: Headers, name: str) -> None:
    assert headers[name] == headers.get(name) == "example.org"
    assert name in headers


def test_of_several_fields_of_a_name_the_first_is_found_and_all_can_be_had(headers: Headers) -> None:
    assert headers["set-cookie"] == headers.get("SET-COOKIE") == "a=1"
    assert headers.get_all("Set-Cookie") == ["a=1", "b=2"]


def test_a_field_that_is_not_there_is_a_key_error_or_the_default(headers: Headers) -> None:
    assert "cookie" not in headers
    assert (headers.get("cookie"), headers.get("cookie", "c"), headers.get_all("cookie")) == (None, "c", [])
    with pytest.raises(KeyError, match="Cookie"):
        headers["Cookie"]


def test_they_are_a_sequence_in_the_order_in_which_they_came(headers: Headers) -> None:
    pairs = [("host", "example.org"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x", "\xff")]
    assert list(headers) == headers[:] == pairs
    assert (len(headers), headers[0], headers[-1]) == (4, pairs[0], pairs[-1])
    assert ("set-cookie", "b=2") in headers
    assert ("set-cookie", "c=3") not in headers


def test_any_byte_of_a_value_can_be_told() -> None:
    every = bytes(range(256))
    assert Headers([(b"a", every)])["a"].encode("latin-1") == every


def test_they_show_what_they_hold(headers: Headers) -> None:
    assert repr(Headers(RAW[:1])) == "Headers([('host', 'example.org')])"


def test_a_request_has_a_path_and_headers(headers: Headers) -> None:
    path, fields = Request("/a?b", headers)
    assert (path, fields["host"]) == ("/a?b", "example.org")
