"""Which origins and hosts the patterns of an operator let in (RFC 6454, RFC 9110 section 7.2)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ws_server.protocol.allowed import host_allowed, origin_allowed


def test_without_patterns_everything_is_allowed() -> None:
    for origins in ([], [b"null"], [b"https://example.com"], [b"https://a.example", b"https://b.example"]):
        assert origin_allowed(origins, ())
    for hosts in ([], [b""], [b"example.com"]):
        assert host_allowed(hosts, ())


# Origins


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.com", "https://example.com"),
        ("https://example.com", "HTTPS://Example.COM"),
        ("HTTPS://Example.COM", "https://example.com"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://example.com:8080", "http://example.com:8080"),
        ("https://*.example.com", "https://a.example.com"),
        ("https://*.example.com", "https://a-1.b.example.com:443"),
        ("https://app-*.example.com", "https://app-17.example.com"),
        ("https://*.staging.*.example", "https://a.staging.b.c.example"),
        ("http://localhost:*", "http://localhost:3000"),
        ("http://localhost:*", "http://localhost"),
        ("http://*:*", "http://192.0.2.1:81"),
        ("http://[::1]:*", "http://[::1]:3000"),
        ("http://[2001:DB8::1]", "http://[2001:db8::1]:80"),
        ("chrome-extension://*", "chrome-extension://abcdefghijklmnop"),
        ("https://a_b.example", "https://a_b.example"),
        ("null", "null"),
    ],
)
def test_an_origin_is_allowed_that_a_pattern_matches(pattern: str, origin: str) -> None:
    assert origin_allowed([origin.encode()], (pattern,))
    assert origin_allowed([origin.encode()], ("https://other.example", pattern))


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.com", "http://example.com"),
        ("https://example.com", "https://example.com:8443"),
        ("https://example.com", "https://example.com:80"),
        ("http://example.com", "http://example.com:443"),
        ("https://example.com", "https://a.example.com"),
        ("https://example.com", "https://example.com.evil.example"),
        ("https://example.com", "https://example.com."),
        ("https://example.com", "https://example.com/"),
        ("https://example.com", "https://user@example.com"),
        ("https://example.com", "https://example.com https://example.com"),
        ("https://example.com", "https://examplexcom"),
        ("https://example.com", "https://example.com:"),
        ("https://example.com", "xhttps://example.com"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "https://evil-example.com"),
        ("https://*.example.com", "https://evil.example:1.example.com"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example#.example.com"),
        ("https://*.example.com", "https://evil.example?.example.com"),
        ("https://*.example.com", "https://evil.example@a.example.com"),
        ("https://*.example.com", "https://[::1].example.com"),
        ("https://*.example.com", "https://a_b.example.com"),
        ("https://*.example.com", "https://ä.example.com"),
        ("https://*.example.com", "https://a b.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("http://localhost:*", "http://localhost:"),
        ("http://localhost:*", "http://localhost:80.evil.example"),
        ("http://localhost:*", "http://localhost:8a"),
        ("http://localhost:*", "http://localhost.evil.example"),
        ("http://localhost:*", "https://localhost:3000"),
        ("http://localhost:*", "http://localhost:٣"),
        ("custom://localhost:*", "custom://localhost"),
        ("http://*", "http://[::1]"),
        ("http://*", "null"),
        ("http://*", ""),
        ("", ""),
        ("", "null"),
        ("null", "NULL"),
        ("null", "https://null"),
    ],
)
def test_an_origin_is_not_allowed_that_no_pattern_matches(pattern: str, origin: str) -> None:
    assert not origin_allowed([origin.encode()], (pattern,))
    assert not origin_allowed([origin.encode()], (pattern, "https://other.example"))


def test_clients_that_send_no_origin_are_allowed_only_where_that_is_said() -> None:
    assert not origin_allowed([], ("https://example.com", "null"))
    assert origin_allowed([], ("https://example.com", ""))


def test_more_than_one_origin_is_never_allowed() -> None:
    assert not origin_allowed([b"https://example.com", b"https://example.com"], ("https://example.com", ""))


# Hosts


@pytest.mark.parametrize(
    ("pattern", "host"),
    [
        ("example.com", "example.com"),
        ("example.com", "EXAMPLE.com"),
        ("Example.COM", "example.com"),
        ("example.com", "example.com."),
        ("example.com.", "example.com"),
        ("example.com", "example.com:8000"),
        ("example.com", "example.com.:8000"),
        ("example.com", "example.com:"),
        ("example.com:8000", "example.com:8000"),
        ("example.com:8000", "example.com.:8000"),
        ("example.com:443", "example.com"),
        ("example.com:80", "example.com"),
        ("example.com:80", "example.com:"),
        ("example.com:*", "example.com:8000"),
        ("example.com:*", "example.com"),
        ("*.example.com", "a.b.example.com:1"),
        ("*", "anything.example"),
        ("127.0.0.1", "127.0.0.1:8000"),
        ("[::1]", "[::1]:8000"),
        ("[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_host_is_allowed_that_a_pattern_matches(pattern: str, host: str) -> None:
    assert host_allowed([host.encode()], (pattern,))
    assert host_allowed([host.encode()], ("other.example", pattern))


@pytest.mark.parametrize(
    ("pattern", "host"),
    [
        ("example.com", "example.org"),
        ("example.com", "a.example.com"),
        ("example.com", "example.com.evil.example"),
        ("example.com", "example.com.."),
        ("example.com", "examplexcom"),
        ("example.com", "example.com:80.evil.example"),
        ("example.com:8000", "example.com"),
        ("example.com:8000", "example.com:80"),
        ("example.com:80", "example.com:443"),
        ("*.example.com", "example.com"),
        ("*.example.com", "evil-example.com"),
        ("*.example.com", "evil.example:1.example.com"),
        ("*.example.com", "a~b.example.com"),
        ("*", ""),
        ("*", "[::1]"),
        ("[::1]", "[::2]"),
        ("[::1]", "::1"),
    ],
)
def test_a_host_is_not_allowed_that_no_pattern_matches(pattern: str, host: str) -> None:
    assert not host_allowed([host.encode()], (pattern,))
    assert not host_allowed([host.encode()], (pattern, "other.example"))


def test_a_request_without_a_host_is_for_none_that_is_allowed() -> None:
    assert not host_allowed([], ("*",))


# Asterisks

pieces = st.text("ab.-*", min_size=1, max_size=8)
names = st.text("ab.-_:/", max_size=12)


@given(pieces, names)
def test_an_asterisk_is_one_or_more_characters_of_a_name_and_nothing_else(pattern: str, name: str) -> None:
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", "[ab.-]+"), name)
    assert origin_allowed([f"x://{name}".encode()], (f"x://{pattern}",)) == bool(expected)


def test_a_name_made_to_be_tried_in_many_ways_is_refused_as_fast_as_any_other() -> None:
    pattern = f"https://{'*a' * 20}.example.com"
    assert not origin_allowed([b"https://" + b"a" * 60_000], (pattern,))
