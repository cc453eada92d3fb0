"""Close codes and reasons (RFC 6455 sections 5.5.1 and 7.4)."""

from __future__ import annotations

import pytest

from trio_ws_server.close_codes import MAX_REASON_BYTES, Close, CloseCode, check_close

SENDABLE = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]
NOT_SENDABLE = [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65536]


@pytest.mark.parametrize("code", SENDABLE)
def test_a_code_that_is_registered_or_free_to_use_may_be_sent(code: int) -> None:
    assert check_close(code, "why") == Close(code, "why")


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_a_code_that_is_reserved_or_never_sent_may_not_be_sent(code: int) -> None:
    with pytest.raises(ValueError, match=rf"close code {code} may not be sent: use 1000-1003, "):
        check_close(code, "")


@pytest.mark.parametrize(
    ("code", "reason", "what"),
    [
        ("1000", "", "code"),
        (True, "", "code"),
        (1000.0, "", "code"),
        (1000, b"why", "reason"),
        (1000, None, "reason"),
    ],
)
def test_a_code_is_an_int_and_a_reason_a_str(code: int, reason: str, what: str) -> None:
    with pytest.raises(TypeError, match=f"close {what} must be"):
        check_close(code, reason)


@pytest.mark.parametrize("reason", ["a" * MAX_REASON_BYTES, "ä" * 61 + "a"])
def test_a_reason_has_at_most_123_bytes_in_utf_8(reason: str) -> None:
    assert check_close(1000, reason).reason == reason
    with pytest.raises(ValueError, match="close reason is 124 bytes in UTF-8, 123 at most"):
        check_close(1000, reason + "a")


def test_a_reason_is_unicode_text() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        check_close(1000, "\ud800")


@pytest.mark.parametrize(
    ("close", "text"),
    [
        (Close(1000), "1000 (normal closure)"),
        (Close(CloseCode.GOING_AWAY, "bye"), "1001 (going away) 'bye'"),
        (Close(1005), "1005 (no status rcvd)"),
        (Close(4000, "why"), "4000 'why'"),
    ],
)
def test_a_close_reads_as_code_meaning_and_reason(close: Close, text: str) -> None:
    assert str(close) == text


def test_the_limit_of_a_reason_is_what_a_control_frame_leaves_for_it() -> None:
    assert MAX_REASON_BYTES == 125 - 2
