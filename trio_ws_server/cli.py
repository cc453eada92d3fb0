"""The command line: options to an application, addresses and a `Config`, and those to `run`."""

from __future__ import annotations

import os
import signal
import ssl
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
import trio
from click.core import ParameterSource

from trio_ws_server import __version__
from trio_ws_server.asgi.lifespan import LIFESPAN_MODES
from trio_ws_server.config import Config
from trio_ws_server.errors import AppImportError, BindError, ConfigError, LifespanError
from trio_ws_server.importer import import_from_string
from trio_ws_server.listeners import MAX_PORT
from trio_ws_server.logs import LEVELS
from trio_ws_server.native import NativeApplication, is_native, takes
from trio_ws_server.serving import run
from trio_ws_server.signals import CANCELLATION_GRACE, exit_after
from trio_ws_server.tls import server_tls

if TYPE_CHECKING:
    from collections.abc import Callable

_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

_METAVARS: dict[type, str] = {int: "N", float: "SECONDS", str: "TEXT", bytes: "FIELD"}
"""How the help shows the value of a `Config` setting, by its type; what it is, the setting's help says."""


class _StartupFailed(click.ClickException):
    exit_code = 3  # as uvicorn has it


class _Option(click.Option):
    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name the environment variable too where the value is from there, which is easily forgotten."""
        hint = super().get_error_hint(ctx)
        if ctx is not None and ctx.get_parameter_source(str(self.name)) is ParameterSource.ENVIRONMENT:
            hint += f" (from {ctx.auto_envvar_prefix}_{str(self.name).upper()})"
        return hint


class _GroupedCommand(click.Command):
    """A command whose help shows its options in groups, in the order in which they are declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "group", "Other"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _option(group: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(
        *names, cls=_Option, group=group, show_default=attributes.pop("show_default", True), **attributes
    )


if TYPE_CHECKING:
    _HeaderType = click.ParamType[tuple[bytes, bytes]]
else:  # not generic before click 8.4
    _HeaderType = click.ParamType


class _Header(_HeaderType):
    name = "field"
    envvar_list_splitter = "\n"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[bytes, bytes]:
        name, colon, content = value.partition(":")
        try:
            if not colon:
                raise ValueError
            return name.strip().lower().encode("ascii"), content.strip().encode("latin-1")
        except ValueError:
            self.fail(f'{value!r} is not of the form "Name: value"', param, ctx)


def _number(what: str, highest: int, base: int = 10) -> Callable[[str], int]:
    def convert(value: str) -> int:
        try:
            number = int(value, base)
        except ValueError:
            number = -1
        if not 0 <= number <= highest:
            raise click.BadParameter(f"{value!r} is not {what}")
        return number

    return convert


_PORT = _number(f"a TCP port, a number from 0 to {MAX_PORT}", MAX_PORT)
_DESCRIPTOR = _number("a file descriptor, a number from 0 up", 2**31 - 1)
_FILE_MODE = _number("a file mode, an octal number from 0 to 777", 0o777, base=8)


def _config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting of `Config`, named and checked as that has it."""
    for setting in reversed(fields(Config)):
        option, kind, default = setting.metadata["option"], setting.metadata["kind"], setting.default
        attributes: dict[str, Any] = {"help": setting.metadata["help"], "callback": _checked(setting)}
        declaration = f"--{option}"
        if kind is bool:
            declaration = f"--{option}/--no-{option}"
        else:
            attributes |= {
                "type": _Header() if kind is bytes else kind,
                "metavar": _METAVARS[kind],
                "multiple": isinstance(default, tuple),
                "show_default": default not in ("", ()),
            }
        command = _option(setting.metadata["group"], declaration, default=default, **attributes)(command)
    return command


def _checked(setting: Any) -> Callable[[click.Context, click.Parameter, Any], Any]:
    check = setting.metadata["check"]

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value == 0 and setting.metadata["zero_is_none"]:
            return None
        try:
            check(value)
        except ValueError as exc:
            hint = "; 0 turns it off" if setting.metadata["zero_is_none"] else ""
            raise click.BadParameter(f"{exc}{hint}", ctx, param) from None
        return value

    return callback


@click.command(
    cls=_GroupedCommand,
    context_settings={"auto_envvar_prefix": "TRIO_WS_SERVER", "max_content_width": 100},
    epilog="Each option can come from an environment variable too: --ws-ping-interval from "
    "TRIO_WS_SERVER_WS_PING_INTERVAL, and so on. There, several hosts are separated by spaces, and several "
    "header fields by line breaks.",
)
@click.argument("app", envvar="TRIO_WS_SERVER_APP", metavar="MODULE:ATTRIBUTE")
@_option(
    "Application",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    metavar="DIRECTORY",
    help="Directory to import the application from.",
)
@_option(
    "Application",
    "--factory",
    is_flag=True,
    help="Call the attribute, without arguments, to get the application.",
)
@_option(
    "Application",
    "--native",
    is_flag=True,
    help="The attribute is a native handler, not an ASGI application.",
)
@_option(
    "Application",
    "--lifespan",
    type=click.Choice(LIFESPAN_MODES),
    default="auto",
    help="Whether the application has an ASGI lifespan; auto: try.",
)
@_option(
    "Address",
    "--host",
    multiple=True,
    default=("127.0.0.1",),
    metavar="HOST",
    help="Name or IP address to listen on. Repeatable.",
)
@_option(
    "Address",
    "--port",
    type=_PORT,
    default="8000",
    metavar="PORT",
    help="TCP port to listen on; 0: any free one.",
)
@_option("Address", "--uds", type=click.Path(), help="Unix socket to listen on, instead of TCP.")
@_option(
    "Address",
    "--uds-mode",
    type=_FILE_MODE,
    metavar="MODE",
    help="Permission bits of the Unix socket, in octal. Without it the umask decides.",
)
@_option(
    "Address",
    "--fd",
    type=_DESCRIPTOR,
    metavar="N",
    help="Inherited descriptor of a listening socket, instead of TCP.",
)
@_option(
    "TLS",
    "--ssl-certfile",
    type=click.Path(),
    help="Certificate of the server and its chain, in PEM. Turns TLS on.",
)
@_option(
    "TLS", "--ssl-keyfile", type=click.Path(), help="Private key of the certificate, if not in the same file."
)
@_option("TLS", "--ssl-keyfile-password", metavar="PASSWORD", help="Password of the private key.")
@_option(
    "TLS", "--ssl-ca-certs", type=click.Path(), help="Certificates that client certificates must lead to."
)
@_option(
    "TLS",
    "--ssl-cert-reqs",
    type=click.Choice(list(_CERT_REQS)),
    default="none",
    help="Whether clients must present a certificate.",
)
@_option("TLS", "--ssl-ciphers", metavar="LIST", help="Ciphers for TLS 1.2, as OpenSSL lists them.")
@_config_options
@_option(
    "Logs",
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    help="Least severe level that is logged.",
)
@click.version_option(
    __version__,
    message=f"trio-ws-server %(version)s (Trio {trio.__version__}, Python {sys.version.split()[0]})",
)
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> None:
    """
    Serve an ASGI application, or a native WebSocket handler, on Trio.

    MODULE:ATTRIBUTE says where it is, as in "chat.main:app".
    """
    _check_address(ctx)
    try:
        tls = server_tls(
            certfile=values["ssl_certfile"],
            keyfile=values["ssl_keyfile"],
            keyfile_password=values["ssl_keyfile_password"],
            ca_certs=values["ssl_ca_certs"],
            cert_reqs=_CERT_REQS[values["ssl_cert_reqs"]],
            ciphers=values["ssl_ciphers"],
        )
        run(
            _application(values),
            values["host"],
            values["port"],
            uds=values["uds"],
            uds_mode=values["uds_mode"],
            fd=values["fd"],
            tls=tls,
            native=values["native"],
            lifespan=values["lifespan"],
            log_level=values["log_level"],
            **settings(values),
        )
    except (AppImportError, ConfigError) as exc:
        raise click.UsageError(str(exc)) from exc
    except BindError as exc:
        raise click.ClickException(str(exc)) from exc
    except LifespanError as exc:
        raise _StartupFailed(f"the application's startup failed: {exc}") from exc
    # What is left is the interpreter's own end, with what the application has for atexit and the threads that it
    # left running.
    exit_after(values["graceful_timeout"] + CANCELLATION_GRACE)


def _check_address(ctx: click.Context) -> None:
    """
    Refuse TCP on the command line together with another kind of address.

    From the environment, where an image has them for the usual case, host and port give way.
    """
    tcp = [name for name in ("host", "port") if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    others = [name for name in ("uds", "fd") if ctx.params[name] is not None]
    if tcp and others:
        raise click.UsageError(
            f"--{tcp[0]} and --{others[0]} cannot go together: the server listens on TCP, or else on a Unix "
            "socket or an inherited descriptor"
        )


def _application(values: dict[str, Any]) -> Any:
    """Return the application or handler that the command line names."""
    name = values["app"]
    sys.path.insert(0, os.path.abspath(values["app_dir"]))
    app = _callable(import_from_string(name), repr(name))
    if values["factory"]:
        if not takes(app, 0):
            raise AppImportError(
                f"{name!r} takes arguments, and --factory calls it without; leave out --factory if it is the "
                "application"
            )
        app = _callable(app(), f"what {name!r} returns")
    elif takes(app, 0) and not takes(app, 1):
        raise AppImportError(
            f"{name!r} takes no arguments, so it is no application; give --factory if it returns one"
        )
    if values["native"]:
        try:
            NativeApplication(app)
        except TypeError as exc:
            raise AppImportError(f"{name!r} is no native handler: {exc}; leave out --native") from None
    elif is_native(app):
        raise AppImportError(
            f"{name!r} takes other arguments than (scope, receive, send), so it is no ASGI application; give "
            "--native if it is a native handler"
        )
    return app


def _callable(found: Any, name: str) -> Any:
    if not callable(found):
        raise AppImportError(f"{name} is no application: it is of type {type(found).__name__}")
    return found


def settings(values: dict[str, Any]) -> Any:
    """Return the settings of `Config` among the values of the options."""
    return {setting.name: values[setting.metadata["option"].replace("-", "_")] for setting in fields(Config)}


def main() -> None:
    """Run the command line; errors of use are one line on standard error."""
    try:
        status = command.main(prog_name="trio-ws-server", standalone_mode=False)
    except click.ClickException as exc:
        click.echo(f"Error: {exc.format_message()}", err=True)
        status = exc.exit_code
    except click.Abort:
        click.echo("Interrupted", err=True)
        status = 128 + signal.SIGINT
    sys.exit(status)
