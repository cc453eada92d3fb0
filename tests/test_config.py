"""The settings: their defaults, and what each may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import pytest

from trio_ws_server.config import KIB, MIB, Config, Options
from trio_ws_server.errors import ConfigError
from trio_ws_server.headers import RESERVED_FIELDS

SETTINGS = {setting.name: setting for setting in dataclasses.fields(Config)}

TIMES = ["close_timeout", "handshake_timeout", "keep_alive_timeout", "body_timeout", "write_timeout"]
TIMES_OR_ZERO = ["graceful_timeout", "graceful_jitter"]
TIMES_OR_NONE = ["ping_interval", "ping_timeout"]
COUNTS = [
    "max_message_size",
    "max_message_fragments",
    "inbox_bytes",
    "inbox_messages",
    "max_head_size",
    "max_header_fields",
]
COUNTS_OR_NONE = ["limit_connections", "limit_connections_per_ip", "limit_message_rate"]
FLAGS = [
    "per_message_deflate",
    "deflate_server_no_context_takeover",
    "deflate_client_no_context_takeover",
    "server_header",
    "date_header",
    "access_log",
]


def each(*groups: tuple[list[str], list[Any]]) -> list[tuple[str, Any]]:
    """Return every setting of a group with every value of the group."""
    return [(name, value) for names, values in groups for name in names for value in values]


def test_the_defaults_are_those_of_the_design() -> None:
    config = Config()
    assert config.max_message_size == 16 * MIB
    assert config.per_message_deflate is False
    assert (config.ping_interval, config.ping_timeout, config.close_timeout) == (20, 20, 10)
    assert (config.handshake_timeout, config.keep_alive_timeout, config.write_timeout) == (10, 5, 30)
    assert config.graceful_timeout == 30
    assert (config.inbox_bytes, config.inbox_messages) == (256 * KIB, 64)
    assert (config.write_high_water, config.write_low_water) == (64 * KIB, 16 * KIB)
    assert (config.max_head_size, config.backlog) == (64 * KIB, 2048)


@pytest.mark.parametrize(
    ("name", "value"),
    each(
        (TIMES, [0.001, 1, 10**6]),
        (TIMES_OR_NONE, [None, 0.001, 60]),
        (TIMES_OR_ZERO, [0, 0.5, 30]),
        (COUNTS, [1, 2**40]),
        (COUNTS_OR_NONE, [None, 1, 2**40]),
        (["deflate_level"], [0, 9]),
        (["deflate_mem_level"], [1, 9]),
        (["deflate_window_bits"], [9, 15]),
        (["deflate_min_size"], [0, 1024]),
        (["backlog"], [1, 2**31 - 1]),
        (FLAGS, [True, False]),
        (["root_path"], ["", "/a", "/a/b", "/ä"]),
        (["allowed_origins"], [(), ("https://example.com", "http://*.example.com:*", "null", "")]),
        (["allowed_hosts"], [(), ("example.com", "*.example.com", "[::1]:8000", "*:80")]),
        (["response_headers"], [(), ((b"X-A", b"b"), (b"x-a", b"")), ((b"Server", b"\xe4 b\tc"),)]),
    ),
)
def test_a_setting_has_the_value_that_it_was_given(name: str, value: Any) -> None:
    assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    each(
        ([*TIMES, *TIMES_OR_NONE, *TIMES_OR_ZERO], [-1, -0.5, math.inf, math.nan, "1", True, False]),
        ([*TIMES, *TIMES_OR_NONE], [0]),
        ([*TIMES, *TIMES_OR_ZERO], [None]),
        ([*TIMES, *TIMES_OR_NONE, *TIMES_OR_ZERO], [1e300]),
        (["backlog"], [2**31]),
        ([*COUNTS, "backlog", "write_high_water", "write_low_water"], [0, -1, 1.0, "1", None, True]),
        (COUNTS_OR_NONE, [0, -1, 1.0, "1", True]),
        (["deflate_level"], [-1, 10, 1.0, True]),
        (["deflate_mem_level"], [0, 10]),
        (["deflate_window_bits"], [8, 16, "12"]),
        (["deflate_min_size"], [-1, None, False]),
        (FLAGS, [0, 1, "yes", None]),
        (["root_path"], ["a", "/", "/a/", b"/a", None]),
    ),
)
def test_a_value_that_a_setting_cannot_have_is_an_error_that_names_both(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{name: value})
    assert str(error.value).startswith(f"{name} must be ")
    assert str(error.value).endswith(f", not {value!r}")


@pytest.mark.parametrize(
    "fields",
    [
        [(b"a", b"b")],
        None,
        ((b"a",),),
        (b"ab",),
        (("a", "b"),),
        ((b"", b"a"),),
        ((b"a b", b"c"),),
        ((b"a:", b"b"),),
        ((b"a", b" b"),),
        ((b"a", b"b "),),
        ((b"a", b"b\r\nc: d"),),
        ((b"a", b"b\nc"),),
        ((b"a", b"\0"),),
        ((b"a", b"\x7f"),),
    ],
)
def test_header_fields_that_no_response_could_carry_are_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match=r"^response_headers must "):
        Config(response_headers=fields)


@pytest.mark.parametrize("name", sorted(RESERVED_FIELDS))
def test_header_fields_that_only_the_server_can_make_are_refused(name: bytes) -> None:
    with pytest.raises(ConfigError, match="the server makes that field itself"):
        Config(response_headers=((name.title(), b"1"),))


def test_the_low_water_mark_is_not_above_the_high_one() -> None:
    Config(write_low_water=100, write_high_water=100)
    with pytest.raises(ConfigError, match=r"write_low_water .* write_high_water .* 101 is above 100"):
        Config(write_low_water=101, write_high_water=100)


def test_settings_are_given_by_name_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        Config(1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().backlog = 1  # type: ignore[misc]


def test_the_keyword_arguments_of_serve_run_and_connect_are_the_settings() -> None:
    assert get_type_hints(Options) == get_type_hints(Config)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_an_option_in_a_group_and_a_help_text(name: str) -> None:
    metadata = SETTINGS[name].metadata
    assert metadata["group"] in {"Address", "Connections", "HTTP", "Logs", "WebSocket"}
    assert metadata["option"].removeprefix("ws-").replace("-", "_") in (
        name,
        name.removesuffix("s"),
        "header",
    )
    assert metadata["help"].endswith(".")


def test_every_option_has_a_name_of_its_own() -> None:
    options = [setting.metadata["option"] for setting in SETTINGS.values()]
    assert len(set(options)) == len(options)
