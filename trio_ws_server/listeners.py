"""
Addresses to listening sockets: TCP, Unix sockets, and descriptors inherited from whoever started us.

Whichever way a socket came about, the result is a `BoundListener`: something to accept on, which knows the
address that people and applications know it by.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_ws_server.errors import BindError
from trio_ws_server.scheduling import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Address",
    "BoundListener",
    "listener_from_fd",
    "open_listeners",
    "open_unix_listener",
    "peer_address",
]

MAX_PORT = 65535

Address = tuple[str, int | None]
"""``(host, port)``, or ``(path, None)`` for a Unix socket, as in ASGI's ``server`` and ``client``."""


@dataclass(frozen=True, eq=False)
class BoundListener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket, which closing closes, and the address that it is known by."""

    socket_listener: trio.SocketListener
    sock: socket.socket
    """The same socket, as the standard library has it."""
    address: Address
    """
    What the socket is bound to.

    Not what ``getsockname()`` says for a Unix socket that was renamed into place: that shows the name at the
    time of binding.
    """
    file_id: tuple[int, int] | None = None
    """Device and inode of the socket file that goes when this closes; ``None`` if there is none of ours."""

    async def accept(self) -> trio.SocketStream:
        """
        Wait for a connection and return it.

        Of those that are waiting already, others have their turn after every 32nd at the latest, not after each
        one. Cancelling loses no connection. Raises `trio.ClosedResourceError` once closed, and `OSError` where the
        process or the machine is out of descriptors or memory (as `trio.SocketListener` does).
        """
        await pace()
        try:
            sock, _ = self.sock.accept()
        except OSError:
            # Nobody is waiting, or something is wrong: Trio knows what to wait for, and which errors to pass over.
            return await self.socket_listener.accept()
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    async def aclose(self) -> None:
        """Do as `close` does, then yield to the scheduler. Cancelled or not, the socket is closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening, and remove the file of a Unix socket if it is still ours. Twice is no error."""
        if self.file_id is not None and self.socket_listener.socket.fileno() != -1:
            # While the socket is open the kernel keeps its inode, so that no later file can have the number.
            with contextlib.suppress(OSError):
                if _file_id(os.lstat(self.address[0])) == self.file_id:
                    os.unlink(self.address[0])
        self.socket_listener.socket.close()

    def url(self, *, tls: bool) -> str:
        """The address for people: ``http://127.0.0.1:8000``, with ``tls`` ``https://``, or ``unix:/path``."""
        host, port = self.address
        return f"unix:{host}" if port is None else f"http{'s' * tls}://{_authority(host, port)}"

    def server_address(self, stream: trio.SocketStream) -> Address | None:
        """
        Return ASGI's ``server`` for a connection accepted here.

        For TCP that is the address the client connected to, which a wildcard address doesn't tell; ``None``
        if the connection is too far gone to say.
        """
        return self.address if self.address[1] is None else _host_and_port(stream.socket.getsockname)


def peer_address(stream: trio.SocketStream) -> Address | None:
    """Return ASGI's ``client``: ``None`` for a Unix socket, or if the client has gone already."""
    return _host_and_port(stream.socket.getpeername)


async def open_listeners(*, hosts: Sequence[str], port: int, backlog: int) -> list[BoundListener]:
    """
    Listen on TCP, on every address that the ``hosts`` (names or IP addresses) resolve to, each once.

    With ``port`` 0 the kernel chooses one for the first address, and the others share it. An IPv6 socket
    takes IPv6 connections only, so that ``0.0.0.0`` and ``::`` go together. Of a name's several addresses
    those that this machine doesn't have (``localhost`` is often ``::1`` too where IPv6 is off) are left out,
    as long as one can be listened on.

    Waits while names are resolved. Raises `BindError`; then, or when cancelled, nothing stays open.
    """
    listeners: dict[tuple[Any, ...], BoundListener] = {}
    with contextlib.ExitStack() as undo:
        for host in hosts:
            addresses = await _resolve(host, port)
            absent = []
            for family, (ip, _, *scope) in addresses:
                if (ip, *scope) in listeners:
                    continue
                try:
                    sock = socket.create_server((ip, port, *scope), family=family, backlog=backlog)
                except OSError as error:
                    advice = _TCP_ADVICE.get(error.errno, "choose another --host or --port")
                    refusal = _refusal(_authority(ip, port), _reason(error), advice)
                    if error.errno not in _NOT_HERE:
                        raise refusal from error
                    absent.append(refusal)
                    continue
                listeners[ip, *scope] = listener = _bound(sock, _ip_address(sock.getsockname()))
                undo.callback(listener.close)
                port = sock.getsockname()[1]
            if len(absent) == len(addresses):
                raise absent[0]
        undo.pop_all()
    return list(listeners.values())


async def open_unix_listener(
    path: str | os.PathLike[str], *, mode: int | None, backlog: int
) -> BoundListener:
    """
    Listen on a Unix socket at ``path``, with the permission bits ``mode`` (``None``: what the umask leaves).

    The socket is made under a temporary name beside ``path`` and renamed into place when it listens and has
    its mode: it is never there half made. A socket file that nothing listens on any more is replaced; a live
    one, and anything that is not a socket, is left alone. Closing the listener removes the file.

    Doesn't wait, but yields to the scheduler before it begins; cancelled there, it leaves nothing. Raises
    `BindError`, and then has left everything as it was.
    """
    await trio.lowlevel.checkpoint()
    return _open_unix(Path(path), mode, backlog)


def listener_from_fd(fd: int) -> BoundListener:
    """
    Listen on an inherited descriptor, as systemd's socket activation passes them.

    The listener owns the descriptor from then on. Raises `BindError` for anything but a listening stream
    socket of TCP or Unix kind; the descriptor then stays open.
    """
    where = f"file descriptor {fd}"
    advice = "pass --fd the descriptor of a listening TCP or Unix stream socket"
    try:
        file_mode = os.fstat(fd).st_mode
    except OSError as error:
        raise _refusal(where, _reason(error), advice) from error
    if not stat.S_ISSOCK(file_mode):
        raise _refusal(where, f"it is {_kind(file_mode)}", advice)
    sock = socket.socket(fileno=fd)
    try:
        if sock.family == socket.AF_UNIX:
            # An abstract name begins with a NUL, which people write as "@" (unix(7)).
            return _bound(sock, (os.fsdecode(sock.getsockname()).replace("\0", "@"), None))
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            return _bound(sock, _ip_address(sock.getsockname()))
    except ValueError:
        pass  # trio's word for a socket that is not a stream socket, or doesn't listen
    kind = f"{_symbol(sock.family)}, {_symbol(sock.type)}"
    sock.detach()
    raise _refusal(where, f"it is a socket ({kind}) that takes no TCP or Unix connections", advice)


# sun_path of unix(7) without the closing NUL; 104 bytes on macOS and the BSDs.
_MAX_PATH = (108 if sys.platform == "linux" else 104) - 1

_STAGE_PREFIX, _STAGED_NAME = ".", "s"
# tempfile adds eight characters of its own to the prefix.
_MAX_PARENT_PATH = _MAX_PATH - len(f"/{_STAGE_PREFIX}12345678/{_STAGED_NAME}")

_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

_TCP_ADVICE: dict[int | None, str] = {
    errno.EADDRINUSE: "choose another --port, or stop what is using it",
    errno.EACCES: "choose a --port of 1024 or above, or give the server the right to use the lower ones",
    errno.EADDRNOTAVAIL: "choose an address of this machine as --host (0.0.0.0 and :: are all of them)",
    errno.EAFNOSUPPORT: "this machine has no such kind of address: choose another --host",
}

_UNIX_ADVICE: dict[int | None, str] = {
    errno.ENOENT: "make its directory first, or choose another --uds path",
    errno.EACCES: "choose a --uds path in a directory that this user may write to",
}

_FILE_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a terminal or other character device",
}


async def _resolve(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the family and socket address of each of the host's addresses."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no name can be spelled so (IDNA)
        reason = f"the host name cannot be resolved ({getattr(error, 'strerror', error)})"
        advice = "check the spelling of --host, or give an IP address"
        raise _refusal(_authority(host, port), reason, advice) from error
    return [(family, address) for family, _, _, _, address in found]


def _open_unix(path: Path, mode: int | None, backlog: int) -> BoundListener:
    path = path.absolute()  # so that the file can be removed after a change of directory
    where = f"unix:{path}"
    own_length, parent_length = len(os.fsencode(path)), len(os.fsencode(path.parent))
    if own_length > _MAX_PATH or parent_length > _MAX_PARENT_PATH:
        reason = f"the path has {own_length} bytes, and its directory {parent_length}"
        advice = f"choose a --uds path of at most {_MAX_PATH}, in a directory of at most {_MAX_PARENT_PATH}"
        raise _refusal(where, reason, advice)
    try:
        return _listen_at(path, mode, backlog)
    except BindError:
        raise
    except OSError as error:
        advice = _UNIX_ADVICE.get(error.errno, "choose another --uds path")
        raise _refusal(where, _reason(error), advice) from error


def _listen_at(path: Path, mode: int | None, backlog: int) -> BoundListener:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # In a directory that only we can enter, nobody can connect before the mode is set.
        with tempfile.TemporaryDirectory(prefix=_STAGE_PREFIX, dir=path.parent) as stage:
            staged = Path(stage, _STAGED_NAME)
            sock.bind(os.fspath(staged))
            if mode is not None:
                staged.chmod(mode)
            sock.listen(backlog)
            file_id = _file_id(staged.lstat())
            # Last, to leave next to no time in which another server could begin to listen there.
            _check_replaceable(path)
            staged.rename(path)
        undo.pop_all()
    return _bound(sock, (os.fspath(path), None), file_id)


def _check_replaceable(path: Path) -> None:
    """Raise `BindError` unless nothing is at ``path``, or a socket that nothing listens on."""
    where = f"unix:{path}"
    try:
        file_mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(file_mode):
        advice = "remove it if nobody needs it, or choose another --uds path"
        raise _refusal(where, f"{_kind(file_mode)} is there already", advice)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live server whose backlog is full would keep us waiting
        answer = probe.connect_ex(os.fspath(path))
    if answer in (0, errno.EAGAIN):
        advice = "stop it, or choose another --uds path"
        raise _refusal(where, "another server is listening there", advice)
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(answer, os.strerror(answer))


def _bound(sock: socket.socket, address: Address, file_id: tuple[int, int] | None = None) -> BoundListener:
    return BoundListener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), sock, address, file_id)


def _ip_address(socket_address: tuple[Any, ...]) -> Address:
    """Drop an IPv6 socket address's flow information and scope."""
    host, port, *_ = socket_address
    return host, port


def _host_and_port(name: Callable[[], Any]) -> Address | None:
    try:
        socket_address = name()
    except OSError:
        return None
    return _ip_address(socket_address) if isinstance(socket_address, tuple) else None


def _file_id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _authority(host: str, port: int) -> str:
    """RFC 3986 section 3.2.2: an IPv6 address goes in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _kind(file_mode: int) -> str:
    return _FILE_KINDS.get(stat.S_IFMT(file_mode), "a special file")


def _symbol(constant: int) -> str:
    """Name a socket family or type, which is a bare number where Python has no name for it."""
    return getattr(constant, "name", str(constant))


def _reason(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else str(error)
    return text[:1].lower() + text[1:]


def _refusal(where: str, reason: str, advice: str) -> BindError:
    return BindError(f"cannot listen on {where}: {reason}; {advice}")
