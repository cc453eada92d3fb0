"""The command line: options to an application, addresses and a `Config`, and those to `run`."""

from __future__ import annotations

import os
import ssl
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
import trio

from trio_ws_server import __version__
from trio_ws_server.config import Config
from trio_ws_server.errors import AppImportError, BindError, ConfigError, LifespanError
from trio_ws_server.importer import import_from_string
from trio_ws_server.logs import LEVELS
from trio_ws_server.serving import run
from trio_ws_server.tls import server_tls

if TYPE_CHECKING:
    from collections.abc import Callable

_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class _StartupFailed(click.ClickException):
    exit_code = 3  # as uvicorn has it


class _GroupedCommand(click.Command):
    """A command whose help shows its options in groups, each option's group being an attribute of it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Other"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


class _Option(click.Option):
    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def _option(group: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(
        *names, cls=_Option, group=group, show_default=attributes.pop("show_default", True), **attributes
    )


class _Header(click.ParamType[tuple[bytes, bytes]]):
    name = "name: value"
    envvar_list_splitter = "\n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[bytes, bytes]:
        if isinstance(value, tuple):
            return value
        name, colon, content = value.partition(":")
        try:
            if not colon:
                raise ValueError
            return name.strip().lower().encode("ascii"), content.strip().encode("latin-1")
        except ValueError:
            self.fail(f'{value!r} is not of the form "Name: value"', param, ctx)


class _Mode(click.ParamType[int]):
    name = "octal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is not a file mode, an octal number from 0 to 777", param, ctx)
        return mode


def _config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting of `Config`, named and checked as that has it."""
    for setting in reversed(fields(Config)):
        option, default = setting.metadata["option"], setting.default
        attributes: dict[str, Any] = {"help": setting.metadata["help"], "callback": _checked(setting)}
        declaration = f"--{option}"
        if isinstance(default, bool):
            declaration = f"--{option}/--no-{option}"
        elif isinstance(default, tuple):
            attributes |= {"multiple": True, "type": _Header(), "show_default": False}
        else:
            attributes["type"] = type(default)
        command = _option(setting.metadata["group"], declaration, default=default, **attributes)(command)
    return command


def _checked(setting: Any) -> Callable[[click.Context, click.Parameter, Any], Any]:
    check = setting.metadata["check"]

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value == 0 and "None" in setting.type:
            return None
        try:
            check(value)
        except ValueError as exc:
            raise click.BadParameter(str(exc), ctx, param) from None
        return value

    return callback


@click.command(
    cls=_GroupedCommand,
    context_settings={"auto_envvar_prefix": "TRIO_WS_SERVER", "max_content_width": 100},
    epilog="Each option can be set by an environment variable too: --ws-ping-interval by "
    "TRIO_WS_SERVER_WS_PING_INTERVAL, and so on.",
)
@click.argument("app", envvar="TRIO_WS_SERVER_APP", metavar="MODULE:ATTRIBUTE")
@_option("Application", "--app-dir", default=".", help="Directory to import the application from.")
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
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Whether the application has an ASGI lifespan; auto: try.",
)
@_option(
    "Address",
    "--host",
    "hosts",
    multiple=True,
    default=("127.0.0.1",),
    help="Name or address to listen on. Repeatable.",
)
@_option(
    "Address",
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    help="TCP port to listen on; 0: any free one.",
)
@_option("Address", "--uds", type=click.Path(), help="Unix socket to listen on, instead of TCP.")
@_option(
    "Address", "--uds-mode", type=_Mode(), help="Permission bits of the Unix socket; default: by the umask."
)
@_option(
    "Address",
    "--fd",
    type=click.IntRange(0),
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
@_option("TLS", "--ssl-keyfile-password", help="Password of the private key.")
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
@_option("TLS", "--ssl-ciphers", help="Ciphers for TLS 1.2, as OpenSSL lists them.")
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
def command(**values: Any) -> None:
    """
    Serve an ASGI application, or a native WebSocket handler, on Trio.

    MODULE:ATTRIBUTE says where it is, as in "chat.main:app".
    """
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
            values["hosts"],
            values["port"],
            uds=values["uds"],
            uds_mode=values["uds_mode"],
            fd=values["fd"],
            tls=tls,
            native=values["native"],
            lifespan=values["lifespan"],
            log_level=values["log_level"],
            **_settings(values),
        )
    except (AppImportError, ConfigError) as exc:
        raise click.UsageError(str(exc)) from exc
    except BindError as exc:
        raise click.ClickException(str(exc)) from exc
    except LifespanError as exc:
        raise _StartupFailed(f"the application's startup failed: {exc}") from exc


def _application(values: dict[str, Any]) -> Any:
    sys.path.insert(0, os.path.abspath(values["app_dir"]))
    app = import_from_string(values["app"])
    if not callable(app):
        raise AppImportError(f"{values['app']!r} is no application: it is a {type(app).__name__}")
    return app() if values["factory"] else app


def _settings(values: dict[str, Any]) -> Any:
    return {setting.name: values[setting.metadata["option"].replace("-", "_")] for setting in fields(Config)}


def main() -> None:
    """Run the command line; errors of use are one line on standard error."""
    try:
        status = command.main(prog_name="trio-ws-server", standalone_mode=False)
    except click.ClickException as exc:
        click.echo(f"Error: {exc.format_message()}", err=True)
        sys.exit(exc.exit_code)
    sys.exit(status)
