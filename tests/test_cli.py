"""The command line: its help, where its values come from, and what it says of mistakes."""

from __future__ import annotations

import logging
import re
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from trio_ws_server import __version__, cli
from trio_ws_server.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = """
async def application(scope, receive, send): ...

async def handler(websocket): ...

async def fails_to_start(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is down"})

async def exits(scope, receive, send):
    raise SystemExit("no settings")

async def has_no_lifespan(scope, receive, send):
    pass

def create():
    return application

def create_from(settings):
    return application

def create_nothing():
    pass

class Application:
    async def __call__(self, scope, receive, send): ...

text = "not an application"
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules in it, where nothing is left of what running it leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("apps.py").write_text(APPS)
    Path("broken.py").write_text("import no_such_module\n")
    Path("wrong.py").write_text("1 / 0\n")
    Path("notes.txt").write_text("not a module\n")
    level = logging.getLogger("trio_ws_server").level
    yield tmp_path
    logging.getLogger("trio_ws_server").setLevel(level)
    for module in "apps", "broken", "wrong":
        sys.modules.pop(module, None)


def parse(*arguments: str) -> dict[str, Any]:
    """Return the values that the command line and the environment give the options."""
    with cli.command.make_context("trio-ws-server", [*arguments, "apps:application"]) as context:
        return context.params


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line to its end; return its exit status and its output."""

    def run_to_the_end(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trio-ws-server", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        out, err = capsys.readouterr()
        return ended.value.code, out + err

    return run_to_the_end


# The help.

OPTIONS = {
    "Application": "app-dir factory native lifespan",
    "Address": "host port uds uds-mode fd backlog",
    "TLS": "ssl-certfile ssl-keyfile ssl-keyfile-password ssl-ca-certs ssl-cert-reqs ssl-ciphers",
    "WebSocket": "ws-max-message-size ws-per-message-deflate ws-ping-interval ws-ping-timeout ws-close-timeout",
    "HTTP": "max-head-size keep-alive-timeout root-path server-header date-header header",
    "Connections": "handshake-timeout write-timeout graceful-timeout",
    "Logs": "access-log log-level",
    "Other": "version help",
}


def test_the_help_shows_each_option_in_its_group_and_the_groups_in_their_order(run: Any) -> None:
    status, help_ = run("--help")
    assert status == 0
    groups = dict(zip(*[iter(re.split(r"^(\w+):\n", help_, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert list(groups) == list(OPTIONS)
    for group, names in OPTIONS.items():
        shown = re.findall(r"^  --([\w-]+)", groups[group], flags=re.MULTILINE)
        assert set(names.split()) <= set(shown)


def test_the_help_begins_with_the_usage_and_ends_with_the_environment(run: Any) -> None:
    _, help_ = run("--help")
    assert help_.startswith("Usage: trio-ws-server [OPTIONS] MODULE:ATTRIBUTE\n")
    assert "TRIO_WS_SERVER_WS_PING_INTERVAL" in help_[help_.index("Other:") :]


def test_the_version_is_told_with_those_of_trio_and_python(run: Any) -> None:
    status, text = run("--version")
    assert status == 0
    assert re.fullmatch(rf"trio-ws-server {__version__} \(Trio [\d.]+, Python [\d.]+\S*\)\n", text)


# Values.

GIVEN: dict[str, tuple[list[str], object]] = {
    "max_message_size": (["--ws-max-message-size", "1000"], 1000),
    "max_message_fragments": (["--ws-max-message-fragments", "100"], 100),
    "per_message_deflate": (["--ws-per-message-deflate"], True),
    "deflate_level": (["--ws-deflate-level", "9"], 9),
    "deflate_mem_level": (["--ws-deflate-mem-level", "8"], 8),
    "deflate_window_bits": (["--ws-deflate-window-bits", "15"], 15),
    "deflate_min_size": (["--ws-deflate-min-size", "0"], 0),
    "deflate_server_no_context_takeover": (["--ws-deflate-server-no-context-takeover"], True),
    "deflate_client_no_context_takeover": (["--ws-deflate-client-no-context-takeover"], True),
    "ping_interval": (["--ws-ping-interval", "7.5"], 7.5),
    "ping_timeout": (["--ws-ping-timeout", "0"], None),
    "close_timeout": (["--ws-close-timeout", "3"], 3.0),
    "inbox_bytes": (["--ws-inbox-bytes", "1000"], 1000),
    "inbox_messages": (["--ws-inbox-messages", "5"], 5),
    "limit_message_rate": (["--limit-message-rate", "50"], 50),
    "allowed_origins": (
        ["--allowed-origin", "https://example.com", "--allowed-origin", ""],
        ("https://example.com", ""),
    ),
    "max_header_fields": (["--max-header-fields", "20"], 20),
    "body_timeout": (["--body-timeout", "3"], 3.0),
    "allowed_hosts": (["--allowed-host", "example.com"], ("example.com",)),
    "max_head_size": (["--max-head-size", "1000"], 1000),
    "handshake_timeout": (["--handshake-timeout", "3"], 3.0),
    "keep_alive_timeout": (["--keep-alive-timeout", "3"], 3.0),
    "limit_connections": (["--limit-connections", "100"], 100),
    "limit_connections_per_ip": (["--limit-connections-per-ip", "0"], None),
    "write_timeout": (["--write-timeout", "3"], 3.0),
    "write_high_water": (["--write-high-water", "100000"], 100000),
    "write_low_water": (["--write-low-water", "1000"], 1000),
    "graceful_timeout": (["--graceful-timeout", "0"], 0.0),
    "graceful_jitter": (["--graceful-jitter", "5"], 5.0),
    "backlog": (["--backlog", "5"], 5),
    "root_path": (["--root-path", "/mounted"], "/mounted"),
    "server_header": (["--no-server-header"], False),
    "date_header": (["--no-date-header"], False),
    "response_headers": (["--header", "X-A: 1", "--header", "x-b:"], ((b"x-a", b"1"), (b"x-b", b""))),
    "access_log": (["--no-access-log"], False),
}


@pytest.mark.parametrize("name", [setting.name for setting in fields(Config)])
def test_every_setting_has_an_option(name: str) -> None:
    arguments, value = GIVEN[name]
    assert getattr(Config(**cli.settings(parse())), name) == getattr(Config(), name)
    assert getattr(Config(**cli.settings(parse(*arguments))), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("PORT", "9000", 9000),
        ("HOST", "127.0.0.1 ::1", ("127.0.0.1", "::1")),
        ("HEADER", "X-A: one and two\nX-B: 3", ((b"x-a", b"one and two"), (b"x-b", b"3"))),
        ("WS_PING_INTERVAL", "5", 5.0),
        ("UDS_MODE", "660", 0o660),
        ("FACTORY", "1", True),
        ("ACCESS_LOG", "0", False),
        ("LOG_LEVEL", "debug", "debug"),
    ],
)
def test_an_option_can_come_from_its_environment_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"TRIO_WS_SERVER_{variable}", text)
    assert parse()[variable.lower()] == value


def test_every_option_has_its_name_in_the_environment() -> None:
    options = [param for param in cli.command.params if param.param_type_name == "option"]
    for option in options:
        assert f"--{str(option.name).replace('_', '-')}" in option.opts


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_WS_SERVER_PORT", "9000")
    monkeypatch.setenv("TRIO_WS_SERVER_HOST", "::1")
    values = parse("--port", "8001", "--host", "127.0.0.1", "--host", "127.0.0.2")
    assert values["port"] == 8001
    assert values["host"] == ("127.0.0.1", "127.0.0.2")


def test_the_application_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setenv("TRIO_WS_SERVER_APP", "apps:fails_to_start")
    assert run("--port", "0") == (3, "Error: the application's startup failed: the database is down\n")


# Mistakes. Each is one line.


def refusal(run: Any, *arguments: str, status: int = 2) -> str:
    """Return the one line with which the command line ends."""
    ended_with, text = run(*arguments)
    assert ended_with == status, text
    assert text.startswith("Error: ")
    assert text.count("\n") == 1
    return str(text.removeprefix("Error: ").strip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port http", "Invalid value for '--port': 'http' is not a TCP port, a number from 0 to 65535"),
        ("--port 65536", "Invalid value for '--port': '65536' is not a TCP port, a number from 0 to 65535"),
        ("--fd -1", "Invalid value for '--fd': '-1' is not a file descriptor, a number from 0 up"),
        (
            "--uds-mode rw",
            "Invalid value for '--uds-mode': 'rw' is not a file mode, an octal number from 0 to 777",
        ),
        (
            "--uds-mode 1777",
            "Invalid value for '--uds-mode': '1777' is not a file mode, an octal number from 0 to 777",
        ),
        (
            "--header Colonless",
            "Invalid value for '--header': 'Colonless' is not of the form \"Name: value\"",
        ),
        ("--ws-max-message-size 0", "'--ws-max-message-size': must be a whole number above 0, not 0"),
        ("--ws-ping-interval -1", "'--ws-ping-interval': must be a number of seconds above 0, not -1.0"),
        ("--graceful-timeout nan", "'--graceful-timeout': must be a number of seconds above 0, not nan"),
        ("--write-timeout soon", "Invalid value for '--write-timeout': 'soon' is not a valid float"),
        ("--root-path mounted", "'--root-path': must be empty or start with \"/\""),
        ("--lifespan maybe", "'--lifespan': 'maybe' is not one of 'auto', 'on', 'off'"),
        ("--log-level loud", "'--log-level': 'loud' is not one of"),
        ("--ssl-cert-reqs some", "'--ssl-cert-reqs': 'some' is not one of 'none', 'optional', 'required'"),
        ("--app-dir nowhere", "Invalid value for '--app-dir': Directory 'nowhere' does not exist"),
        ("--app-dir notes.txt", "Invalid value for '--app-dir': Directory 'notes.txt' is a file"),
        ("--prot 8000", "No such option"),
        ("--write-high-water 1", "write_low_water (--write-low-water) must not be above"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_option(run: Any, arguments: str, message: str) -> None:
    assert message in refusal(run, *arguments.split(), "apps:application")


@pytest.mark.parametrize("field", ["X A: b", ": b", "X: a\nY: b", "Ä: b", "X: €"])
def test_a_header_that_could_not_be_sent_is_an_error(run: Any, field: str) -> None:
    assert "'--header'" in refusal(run, "--header", field, "apps:application")


def test_a_bad_value_from_the_environment_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.setenv("TRIO_WS_SERVER_PORT", "tcp://10.0.0.1:80")
    message = refusal(run, "apps:application")
    assert message.startswith("Invalid value for '--port' (from TRIO_WS_SERVER_PORT): 'tcp://10.0.0.1:80'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--uds s --port 80", "--port and --uds cannot go together"),
        ("--fd 3 --host ::1", "--host and --fd cannot go together"),
        ("--uds s --fd 3", "--uds and --fd cannot go together"),
        ("--uds-mode 600", "--uds-mode given without --uds"),
        ("--ssl-keyfile key.pem", "--ssl-keyfile given without --ssl-certfile"),
        ("--ssl-cert-reqs required", "--ssl-cert-reqs given without --ssl-certfile"),
    ],
)
def test_options_that_do_not_go_together_are_an_error(run: Any, arguments: str, message: str) -> None:
    assert refusal(run, *arguments.split(), "apps:application").startswith(message)


def test_host_and_port_from_the_environment_give_way_to_a_unix_socket(
    monkeypatch: pytest.MonkeyPatch, run: Any, directory: Path
) -> None:
    monkeypatch.setenv("TRIO_WS_SERVER_PORT", "1")
    monkeypatch.setenv("TRIO_WS_SERVER_HOST", "192.0.2.1")
    assert run("--uds", "socket", "apps:fails_to_start")[0] == 3


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("apps", "cannot import 'apps': it must have the form \"module:attribute\""),
        ("nowhere:app", "cannot import module 'nowhere': there is no 'nowhere'"),
        ("nowhere.near:app", "cannot import module 'nowhere.near': there is no 'nowhere'"),
        ("apps.more:app", "cannot import module 'apps.more'"),
        ("./apps.py:application", 'it must have the form "module:attribute"'),
        (".apps:application", 'it must have the form "module:attribute"'),
        ("apps:aplication", "cannot import 'aplication' from 'apps'"),
        ("apps:aplication", "did you mean 'application'?"),
        ("apps:text", "'apps:text' is no application: it is of type str"),
        ("--native apps:text", "'apps:text' is no application: it is of type str"),
        ("--factory apps:create_nothing", "what 'apps:create_nothing' returns is no application"),
        ("--factory apps:create_from", "'apps:create_from' takes arguments, and --factory calls it without"),
        ("apps:create", "'apps:create' takes no arguments, so it is no application; give --factory"),
        (
            "apps:Application",
            "'apps:Application' takes no arguments, so it is no application; give --factory",
        ),
        ("apps:handler", "give --native if it is a native handler"),
        ("--native apps:application", "'apps:application' is no native handler"),
    ],
)
def test_what_is_no_application_is_an_error_that_says_why(run: Any, app: str, message: str) -> None:
    assert message in refusal(run, *app.split())


def test_no_application_at_all_is_an_error(run: Any) -> None:
    assert refusal(run) == "Missing argument 'MODULE:ATTRIBUTE'."


@pytest.mark.parametrize(
    ("app", "error"), [("broken:app", ModuleNotFoundError), ("wrong:app", ZeroDivisionError)]
)
def test_an_error_inside_the_applications_module_comes_out_as_it_is(
    monkeypatch: pytest.MonkeyPatch, app: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trio-ws-server", app])
    with pytest.raises(error):
        cli.main()


def test_the_application_is_imported_from_the_directory_that_is_asked_for(run: Any, directory: Path) -> None:
    Path("elsewhere").mkdir()
    Path("apps.py").rename("elsewhere/apps.py")
    assert run("--app-dir", "elsewhere", "--port", "0", "apps:fails_to_start")[0] == 3


def test_a_startup_that_fails_ends_with_3_and_the_applications_message(run: Any) -> None:
    assert refusal(run, "--port", "0", "apps:fails_to_start", status=3) == (
        "the application's startup failed: the database is down"
    )


def test_an_application_that_must_have_a_lifespan_and_has_none_ends_with_3(run: Any) -> None:
    assert refusal(run, "--port", "0", "--lifespan", "on", "apps:has_no_lifespan", status=3) == (
        "the application's startup failed: the application returned before it answered lifespan.startup"
    )


def test_an_application_that_exits_in_its_startup_ends_with_3(run: Any) -> None:
    assert refusal(run, "--port", "0", "apps:exits", status=3) == (
        "the application's startup failed: the application raised SystemExit('no settings') before it answered "
        "lifespan.startup"
    )


def test_a_port_in_use_is_an_error_that_names_the_address(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(run, "--port", str(port), "apps:application", status=1)
    assert message.startswith(f"cannot listen on 127.0.0.1:{port}: address already in use")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--uds apps.py", "a regular file is there already"),
        ("--fd 999", "cannot listen on file descriptor 999: bad file descriptor"),
        ("--port 0 --host 192.0.2.1", "cannot listen on 192.0.2.1:0: cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_an_error(run: Any, arguments: str, message: str) -> None:
    assert message in refusal(run, *arguments.split(), "apps:application", status=1)


def test_a_bad_certificate_is_an_error_that_names_the_file(run: Any) -> None:
    message = refusal(run, "--ssl-certfile", "notes.txt", "apps:application")
    assert message.startswith("--ssl-certfile notes.txt is not a file of PEM certificates")


def test_a_key_of_another_certificate_is_an_error(run: Any) -> None:
    authority = trustme.CA()
    for name in "one", "other":
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(name)
    message = refusal(run, "--ssl-certfile", "one", "--ssl-keyfile", "other", "apps:application")
    assert "does not belong to the certificate" in message


def test_an_interrupt_while_the_application_is_imported_ends_without_a_traceback(run: Any) -> None:
    Path("wrong.py").write_text("raise KeyboardInterrupt\n")
    assert run("wrong:app") == (130, "\nInterrupted\n")
