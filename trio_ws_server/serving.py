"""`serve` and `run`: an application or handler, on addresses, until told to stop."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Unpack, cast

import trio
from asgiref.compatibility import guarantee_single_callable

from trio_ws_server import logs
from trio_ws_server.asgi.application import ASGIApplication
from trio_ws_server.asgi.lifespan import LIFESPAN_MODES, run_lifespan
from trio_ws_server.config import Config, Options, check_names
from trio_ws_server.errors import ConfigError
from trio_ws_server.listeners import MAX_PORT, listener_from_fd, open_listeners, open_unix_listener
from trio_ws_server.native import NativeApplication, is_native
from trio_ws_server.server import Server
from trio_ws_server.signals import shut_down_on_signals
from trio_ws_server.tls import ServerTLS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from trio_ws_server.application import Application
    from trio_ws_server.asgi.lifespan import LifespanMode
    from trio_ws_server.listeners import BoundListener
    from trio_ws_server.native import Handler


AnyASGIApplication = (
    Callable[[Any, Any, Any], Awaitable[object]]  # ASGI 3
    | Callable[[Any], Callable[[Any, Any], Awaitable[object]]]  # ASGI 2
)
"""Frameworks have types of their own for scopes and events, which asgiref's are not compatible with."""


class ServeOptions(Options, total=False):
    """What `serve` and `run` take beside host and port: the settings of `Config`, and these."""

    uds: str | os.PathLike[str] | None
    """Path of a Unix socket to listen on instead of TCP."""
    uds_mode: int | None
    """Permission bits of the Unix socket; None: what the umask leaves."""
    fd: int | None
    """Inherited descriptor of a listening socket, to use instead of TCP."""
    tls: ServerTLS | ssl.SSLContext | None
    """Speak TLS, and nothing else."""
    native: bool | None
    """Whether the first argument is a native handler; None: its signature decides."""
    lifespan: LifespanMode
    """Whether an ASGI application has a lifespan: "on", "off", or "auto", which is to try."""


async def serve(
    app_or_handler: Handler | AnyASGIApplication,
    host: str | Sequence[str] = "127.0.0.1",
    port: int = 8000,
    *,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Unpack[ServeOptions],
) -> None:
    """
    Serve WebSocket connections with a native handler, or WebSocket and HTTP with an ASGI application.

    Listens on TCP at ``host``, one name or address or several, and ``port`` (0: any free one), unless the
    options, those of `ServeOptions`, say otherwise.

    Started with ``nursery.start``, it returns once it accepts connections, with a `Server` that knows the
    addresses and can shut it down, which makes `serve` return. Cancelling it drops all connections at once.

    Raises `ConfigError` for a setting that cannot be, `BindError` for an address that cannot be listened on,
    `LifespanError` if the application's startup fails.
    """
    await _Plan.of(app_or_handler, host, port, options).carry_out(task_status)


def run(
    app_or_handler: Handler | AnyASGIApplication,
    host: str | Sequence[str] = "127.0.0.1",
    port: int = 8000,
    *,
    log_level: str = "info",
    **options: Unpack[ServeOptions],
) -> None:
    """
    Run Trio and `serve` in it until SIGTERM or SIGINT, logging to standard error.

    At the signal, stops accepting, lets running requests and handlers finish, and closes WebSocket connections
    with code 1012 (SIGINT: 1001). What still runs after ``graceful_timeout`` seconds, or at a second signal, is
    cancelled. Takes and raises what `serve` does.
    """
    logs.configure(log_level)
    plan = _Plan.of(app_or_handler, host, port, options)
    trio.run(plan.carry_out_until_signal)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to serve, where, and how."""

    app_or_handler: Handler | AnyASGIApplication
    hosts: Sequence[str]
    port: int
    config: Config
    uds: str | os.PathLike[str] | None = None
    uds_mode: int | None = None
    fd: int | None = None
    tls: ServerTLS | None = None
    native: bool
    lifespan: LifespanMode = "auto"

    @classmethod
    def of(
        cls,
        app_or_handler: Handler | AnyASGIApplication,
        host: str | Sequence[str],
        port: int,
        options: ServeOptions,
    ) -> _Plan:
        settings = cast("dict[str, Any]", options)
        names = {field.name for field in fields(Config)}
        check_names(settings, names | ServeOptions.__annotations__.keys())
        if not callable(app_or_handler):
            raise TypeError(
                f"{app_or_handler!r} is no application or handler; give the object itself (an import string such "
                "as 'app:app' is for the command line)"
            )
        if not isinstance(port, int) or not 0 <= port <= MAX_PORT:
            raise ConfigError(f"port must be a whole number from 0 to {MAX_PORT}, not {port!r}")
        if (mode := options.get("lifespan", "auto")) not in LIFESPAN_MODES:
            raise ConfigError(f"lifespan must be one of {', '.join(map(repr, LIFESPAN_MODES))}, not {mode!r}")
        if not isinstance(options.get("tls"), ServerTLS | ssl.SSLContext | None):
            raise ConfigError(f"tls must be an ssl.SSLContext or of server_tls(), not {options.get('tls')!r}")
        if options.get("uds") is not None and options.get("fd") is not None:
            raise ConfigError("--uds and --fd cannot go together: choose one place to listen at")
        if options.get("uds") is None and options.get("uds_mode") is not None:
            raise ConfigError("--uds-mode given without --uds: it is for the Unix socket that --uds makes")
        hosts = [host] if isinstance(host, str) else list(host)
        if not hosts and options.get("uds") is None and options.get("fd") is None:
            raise ConfigError("no host given to listen on: name one or more addresses, such as 127.0.0.1")
        others = {name: value for name, value in settings.items() if name not in names}
        if isinstance(tls := others.get("tls"), ssl.SSLContext):
            others["tls"] = ServerTLS.of(tls)
        if others.get("native") is None:
            others["native"] = is_native(app_or_handler)
        return cls(
            app_or_handler=app_or_handler,
            hosts=hosts,
            port=port,
            config=Config(**{name: value for name, value in settings.items() if name in names}),
            **others,
        )

    async def carry_out_until_signal(self) -> None:
        await self.carry_out(trio.TASK_STATUS_IGNORED, until_signal=True)

    async def carry_out(self, task_status: trio.TaskStatus[Server], *, until_signal: bool = False) -> None:
        listeners = await self._listen()
        try:
            server = Server(listeners, self.config, tls=self.tls)
            with (
                server.scope,
                shut_down_on_signals(server, self.config.graceful_timeout) if until_signal else nullcontext(),
            ):
                if self.native:
                    handler = cast("Handler", self.app_or_handler)
                    await self._run(server, NativeApplication(handler), task_status)
                else:
                    await self._run_asgi(server, task_status)
            if server.scope.cancelled_caught:
                logs.logger.warning("Cancelled everything that still ran")
        finally:
            for listener in listeners:
                listener.close()

    async def _listen(self) -> list[BoundListener]:
        if self.fd is not None:
            return [listener_from_fd(self.fd)]
        if self.uds is not None:
            return [await open_unix_listener(self.uds, mode=self.uds_mode, backlog=self.config.backlog)]
        return await open_listeners(hosts=self.hosts, port=self.port, backlog=self.config.backlog)

    async def _run_asgi(self, server: Server, task_status: trio.TaskStatus[Server]) -> None:
        app = guarantee_single_callable(self.app_or_handler)
        async with run_lifespan(app, self.lifespan) as state:
            application = ASGIApplication(app, root_path=self.config.root_path, state=state)
            await self._run(server, application, task_status)

    async def _run(
        self, server: Server, application: Application, task_status: trio.TaskStatus[Server]
    ) -> None:
        def started() -> None:
            for url in server.urls:
                logs.logger.info("Listening on %s (Trio %s)", url, trio.__version__)
            task_status.started(server)

        await server.run(application, started)
