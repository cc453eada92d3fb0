"""Listening sockets are opened, named, explained when they can't be had, and cleared away."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, open_stream_to_socket_listener

from tests.helpers import needs_ipv6
from trio_ws_server.errors import BindError
from trio_ws_server.listeners import (
    BoundListener,
    listener_from_fd,
    open_listeners,
    open_unix_listener,
    peer_address,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence


NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights, which the kernel would otherwise find no fault with."""
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


class Resolver(trio.abc.HostnameResolver):
    """Knows the addresses of the names that it is given, and no others."""

    def __init__(self, names: dict[str, Sequence[str]]) -> None:
        self.names = {name.encode(): addresses for name, addresses in names.items()}

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in self.names[host]
        ]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


@contextmanager
def closing_all(listeners: list[BoundListener]) -> Iterator[list[BoundListener]]:
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def open_tcp(*hosts: str, port: int = 0) -> Coroutine[Any, Any, list[BoundListener]]:
    return open_listeners(hosts=hosts, port=port, backlog=5)


def port_of(listener: BoundListener) -> int:
    port = listener.address[1]
    assert port is not None
    return port


def leave_stale_socket(path: Path) -> None:
    """Leave the file of a socket that nobody has any more, as a killed server does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def entries(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def first_port_for_all() -> int:
    """Return the first port that does not take root's rights."""
    setting = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return int(setting.read_text()) if setting.exists() else 1024


# TCP


async def test_a_connection_to_the_address_listened_on_is_accepted() -> None:
    with closing_all(await open_tcp("127.0.0.1")) as [listener]:
        async with await open_stream_to_socket_listener(listener.socket_listener) as client:
            stream = await listener.accept()
            await client.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.aclose()


async def test_connections_that_wait_are_accepted_32_at_a_time_before_others_have_their_turn() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with closing_all(await open_listeners(hosts=["127.0.0.1"], port=0, backlog=96)) as [listener]:
        clients = [socket.create_connection(listener.sock.getsockname()) for _ in range(96)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            while not turns:
                await trio.lowlevel.checkpoint()
            turns = 0
            streams = [await listener.accept() for _ in clients]
            assert turns in (2, 3, 4)
            nursery.cancel_scope.cancel()
        assert {peer_address(stream) for stream in streams} == {client.getsockname() for client in clients}
        for sock in clients:
            sock.close()
        for stream in streams:
            stream.socket.close()


async def test_a_cancelled_accept_leaves_the_connection_to_the_next() -> None:
    with closing_all(await open_tcp("127.0.0.1")) as [listener]:
        async with await open_stream_to_socket_listener(listener.socket_listener) as client:
            for _ in range(32):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await listener.accept()
                assert scope.cancelled_caught
            async with await listener.accept() as stream:
                assert peer_address(stream) == client.socket.getsockname()


async def test_an_ipv4_listener_says_its_address() -> None:
    with closing_all(await open_tcp("127.0.0.1")) as [listener]:
        port = port_of(listener)
        assert listener.address == ("127.0.0.1", port)
        assert listener.url(tls=False) == f"http://127.0.0.1:{port}"
        assert listener.url(tls=True) == f"https://127.0.0.1:{port}"


@needs_ipv6
async def test_an_ipv6_listener_says_its_address_in_brackets() -> None:
    with closing_all(await open_tcp("::1")) as [listener]:
        port = port_of(listener)
        assert listener.address == ("::1", port)
        assert listener.url(tls=False) == f"http://[::1]:{port}"


@needs_ipv6
async def test_an_ipv6_connection_has_addresses_without_flow_and_scope() -> None:
    with closing_all(await open_tcp("::1")) as [listener]:
        client = await open_stream_to_socket_listener(listener.socket_listener)
        async with client, await listener.accept() as stream:
            assert listener.server_address(stream) == listener.address
            assert peer_address(stream) == ("::1", client.socket.getsockname()[1])


@needs_ipv6
async def test_the_ipv4_and_ipv6_wildcards_share_the_port_that_the_kernel_chose() -> None:
    with closing_all(await open_tcp("0.0.0.0", "::")) as listeners:
        port = port_of(listeners[0])
        assert [listener.address for listener in listeners] == [("0.0.0.0", port), ("::", port)]


async def test_a_connection_to_a_wildcard_address_has_the_address_that_the_client_used() -> None:
    with closing_all(await open_tcp("0.0.0.0")) as [listener]:
        client = await trio.open_tcp_stream("127.0.0.1", port_of(listener))
        async with client, await listener.accept() as stream:
            assert listener.server_address(stream) == ("127.0.0.1", port_of(listener))
            assert peer_address(stream) == client.socket.getsockname()


async def test_a_client_that_has_gone_has_no_address() -> None:
    with closing_all(await open_tcp("127.0.0.1")) as [listener]:
        client = await open_stream_to_socket_listener(listener.socket_listener)
        stream = await listener.accept()
        # A reset rather than an end of stream: with that the kernel forgets the peer.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert peer_address(stream) is None
        await stream.aclose()


async def test_a_connection_that_was_closed_has_no_server_address() -> None:
    with closing_all(await open_tcp("127.0.0.1")) as [listener]:
        async with await open_stream_to_socket_listener(listener.socket_listener):
            stream = await listener.accept()
            await stream.aclose()
            assert listener.server_address(stream) is None


async def test_a_name_with_several_addresses_gets_a_listener_on_each_with_one_port() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({"both.test": ["127.0.0.1", "127.0.0.2"]}))
    with closing_all(await open_tcp("both.test")) as listeners:
        port = port_of(listeners[0])
        assert [listener.address for listener in listeners] == [("127.0.0.1", port), ("127.0.0.2", port)]


async def test_an_address_that_is_named_twice_is_listened_on_once() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({"name.test": ["127.0.0.1", "127.0.0.1"]}))
    with closing_all(await open_tcp("name.test", "127.0.0.1")) as listeners:
        assert [listener.address[0] for listener in listeners] == ["127.0.0.1"]


@pytest.mark.parametrize("addresses", [("240.0.0.1", "127.0.0.1"), ("127.0.0.1", "240.0.0.1")])
async def test_a_names_addresses_that_this_machine_lacks_are_left_out(addresses: Sequence[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({"name.test": addresses}))
    with closing_all(await open_tcp("name.test")) as listeners:
        assert [listener.address[0] for listener in listeners] == ["127.0.0.1"]


async def test_a_name_with_only_addresses_that_this_machine_lacks_is_an_error() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({"away.test": ["240.0.0.1", "240.0.0.2"]}))
    with pytest.raises(BindError) as caught:
        await open_tcp("away.test", port=8000)
    assert str(caught.value) == (
        "cannot listen on 240.0.0.1:8000: cannot assign requested address; "
        "choose an address of this machine as --host (0.0.0.0 and :: are all of them)"
    )


async def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError) as caught:
            await open_tcp("127.0.0.1", port=port)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another --port, or stop what is using it"
    )
    assert isinstance(caught.value.__cause__, OSError)


@needs_ipv6
async def test_an_ipv6_address_in_an_error_has_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"^cannot listen on \[::1\]:{port}: "):
            await open_tcp("::1", port=port)


async def test_when_one_address_fails_the_others_are_closed_again() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=r"127\.0\.0\.2"):
            await open_tcp("127.0.0.1", "127.0.0.2", port=port)
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.skipif(first_port_for_all() <= 1, reason="any user of this machine may use any port")
async def test_a_port_that_only_root_may_use_is_an_error_that_says_which_ports_are_free_to_use() -> None:
    with unprivileged(), pytest.raises(BindError) as caught:
        await open_tcp("127.0.0.1", port=1)
    assert str(caught.value) == (
        "cannot listen on 127.0.0.1:1: permission denied; "
        "choose a --port of 1024 or above, or give the server the right to use the lower ones"
    )


async def test_a_name_that_does_not_resolve_is_an_error() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({}))
    with pytest.raises(BindError) as caught:
        await open_tcp("nowhere.test", port=8000)
    assert str(caught.value) == (
        "cannot listen on nowhere.test:8000: the host name cannot be resolved (Name or service not known); "
        "check the spelling of --host, or give an IP address"
    )


async def test_a_name_that_no_name_can_be_is_an_error() -> None:
    with pytest.raises(BindError, match="cannot be resolved"):
        await open_tcp("\N{SNOWMAN}" * 70, port=8000)


async def test_a_cancelled_opening_leaves_nothing_open() -> None:
    class Stuck(Resolver):
        async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
            scope.cancel()
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Stuck({}))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with trio.CancelScope() as scope:
        await open_tcp("127.0.0.1", "stuck.test", port=port)
    assert scope.cancelled_caught
    socket.create_server(("127.0.0.1", port)).close()


async def test_closing_is_a_checkpoint_and_frees_the_port() -> None:
    [listener] = await open_tcp("127.0.0.1")
    with assert_checkpoints():
        await listener.aclose()
    socket.create_server(("127.0.0.1", port_of(listener))).close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


# Unix sockets


async def test_a_unix_listener_is_known_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=None, backlog=5) as listener:
        assert listener.address == (str(path), None)
        assert listener.url(tls=False) == listener.url(tls=True) == f"unix:{path}"
        async with await trio.open_unix_socket(path), await listener.accept() as stream:
            assert listener.server_address(stream) == (str(path), None)
            assert peer_address(stream) is None


async def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with await open_unix_listener("app.sock", mode=None, backlog=5) as listener:
        assert listener.address == (str(tmp_path / "app.sock"), None)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_socket_file_has_the_mode_asked_for(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=mode, backlog=5):
        assert stat.S_IMODE(path.stat().st_mode) == mode


async def test_with_no_mode_asked_for_the_umask_decides(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    umask = os.umask(0o027)
    try:
        async with await open_unix_listener(path, mode=None, backlog=5):
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
    finally:
        os.umask(umask)


async def test_nothing_but_the_socket_is_left_in_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=None, backlog=5):
        assert entries(tmp_path) == [path.name]


async def test_closing_removes_the_socket_file(tmp_path: Path) -> None:
    listener = await open_unix_listener(tmp_path / "app.sock", mode=None, backlog=5)
    await listener.aclose()
    assert entries(tmp_path) == []


async def test_closing_leaves_a_file_that_has_taken_the_sockets_place(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=None, backlog=5):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


async def test_closing_when_the_socket_file_has_gone_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=None, backlog=5):
        path.unlink()


async def test_closing_twice_leaves_the_socket_of_the_next_server(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    first = await open_unix_listener(path, mode=None, backlog=5)
    first.close()
    async with await open_unix_listener(path, mode=None, backlog=5):
        first.close()
        assert path.is_socket()


async def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    leave_stale_socket(path)
    listener = await open_unix_listener(path, mode=None, backlog=5)
    async with listener, await trio.open_unix_socket(path):
        await (await listener.accept()).aclose()


async def test_a_live_servers_socket_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with await open_unix_listener(path, mode=None, backlog=5):
        before = path.stat()
        with pytest.raises(BindError) as caught:
            await open_unix_listener(path, mode=None, backlog=5)
        assert str(caught.value) == (
            f"cannot listen on unix:{path}: another server is listening there; "
            "stop it, or choose another --uds path"
        )
        assert path.stat().st_ino == before.st_ino
        assert entries(tmp_path) == [path.name]


async def test_a_live_server_too_busy_to_answer_counts_as_live(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        for _ in range(10):
            waiting = sockets.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        with pytest.raises(BindError, match="another server is listening there"):
            await open_unix_listener(path, mode=None, backlog=5)


async def test_a_socket_of_another_type_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(BindError, match="choose another --uds path"):
            await open_unix_listener(path, mode=None, backlog=5)
        assert entries(tmp_path) == [path.name]


async def test_a_regular_file_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(BindError) as caught:
        await open_unix_listener(path, mode=None, backlog=5)
    assert str(caught.value) == (
        f"cannot listen on unix:{path}: a regular file is there already; "
        "remove it if nobody needs it, or choose another --uds path"
    )
    assert path.read_text() == "precious"
    assert entries(tmp_path) == [path.name]


async def test_a_directory_is_never_removed(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="a directory is there already"):
        await open_unix_listener(tmp_path, mode=None, backlog=5)


async def test_a_symbolic_link_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    path.symlink_to("elsewhere.sock")
    with pytest.raises(BindError, match="a symbolic link is there already"):
        await open_unix_listener(path, mode=None, backlog=5)
    assert path.is_symlink()


async def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run" / "app.sock"
    with pytest.raises(BindError) as caught:
        await open_unix_listener(path, mode=None, backlog=5)
    assert str(caught.value) == (
        f"cannot listen on unix:{path}: no such file or directory; "
        "make its directory first, or choose another --uds path"
    )


async def test_a_directory_without_write_permission_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(BindError) as caught:
        await open_unix_listener(directory / "app.sock", mode=None, backlog=5)
    assert "permission denied; choose a --uds path in a directory that this user may write to" in str(
        caught.value
    )


def path_of_length(total: int, *, directory: int, start: Path) -> Path:
    """Make a directory whose path has ``directory`` bytes, and return a path in it that has ``total``."""
    parent = start / ("d" * (directory - len(bytes(start)) - 1))
    parent.mkdir()
    return parent / ("s" * (total - directory - 1))


LONGEST, LONGEST_DIRECTORY = (107, 95) if sys.platform == "linux" else (103, 91)


async def test_the_longest_path_that_the_system_allows_works(tmp_path: Path) -> None:
    path = path_of_length(LONGEST, directory=LONGEST_DIRECTORY, start=tmp_path)
    listener = await open_unix_listener(path, mode=None, backlog=5)
    async with listener, await trio.open_unix_socket(path):
        await (await listener.accept()).aclose()


@pytest.mark.parametrize(
    ("total", "directory"), [(LONGEST + 1, LONGEST_DIRECTORY), (LONGEST, LONGEST_DIRECTORY + 1)]
)
async def test_a_longer_path_is_an_error_that_says_how_long_it_may_be(
    tmp_path: Path, total: int, directory: int
) -> None:
    path = path_of_length(total, directory=directory, start=tmp_path)
    with pytest.raises(BindError) as caught:
        await open_unix_listener(path, mode=None, backlog=5)
    assert str(caught.value) == (
        f"cannot listen on unix:{path}: the path has {total} bytes, and its directory {directory}; "
        f"choose a --uds path of at most {LONGEST}, in a directory of at most {LONGEST_DIRECTORY}"
    )


async def test_opening_a_unix_listener_is_a_checkpoint(tmp_path: Path) -> None:
    with assert_checkpoints():
        listener = await open_unix_listener(tmp_path / "app.sock", mode=None, backlog=5)
    listener.close()


# Inherited descriptors


async def test_an_inherited_tcp_socket_is_listened_on() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with listener_from_fd(sock.detach()) as listener:
        assert listener.address == ("127.0.0.1", port)
        async with await trio.open_tcp_stream("127.0.0.1", port):
            await (await listener.accept()).aclose()


@needs_ipv6
async def test_an_inherited_ipv6_socket_is_listened_on() -> None:
    sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    port = sock.getsockname()[1]
    async with listener_from_fd(sock.detach()) as listener:
        assert listener.url(tls=True) == f"https://[::1]:{port}"


async def test_an_inherited_unix_socket_is_listened_on_and_its_file_is_left_to_its_owner(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    async with listener_from_fd(sock.detach()) as listener:
        assert listener.address == (str(path), None)
        async with await trio.open_unix_socket(path):
            await (await listener.accept()).aclose()
    assert path.is_socket()


async def test_an_abstract_unix_address_is_written_with_an_at_sign() -> None:
    name = f"trio-ws-server-test-{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0{name}")
    sock.listen()
    async with listener_from_fd(sock.detach()) as listener:
        assert listener.url(tls=False) == f"unix:@{name}"


def refusal(fd: int) -> str:
    with pytest.raises(BindError) as caught:
        listener_from_fd(fd)
    message = str(caught.value)
    prefix = f"cannot listen on file descriptor {fd}: "
    advice = "; pass --fd the descriptor of a listening TCP or Unix stream socket"
    assert message.startswith(prefix)
    assert message.endswith(advice)
    return message.removeprefix(prefix).removesuffix(advice)


async def test_a_descriptor_that_is_not_open_is_an_error() -> None:
    assert refusal(-1) == "bad file descriptor"


async def test_a_descriptor_of_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert refusal(file.fileno()) == "it is a regular file"


async def test_a_descriptor_of_no_known_kind_is_an_error() -> None:
    fd = os.eventfd(0)
    assert refusal(fd) == "it is a special file"
    os.close(fd)


@pytest.mark.parametrize(
    ("family", "kind", "word"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "AF_INET, SOCK_STREAM"),
        (socket.AF_INET, socket.SOCK_DGRAM, "AF_INET, SOCK_DGRAM"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "AF_UNIX, SOCK_STREAM"),
        (socket.AF_NETLINK, socket.SOCK_RAW, "AF_NETLINK, SOCK_RAW"),
    ],
)
async def test_a_socket_that_does_not_listen_is_an_error_and_stays_open(
    family: int, kind: int, word: str
) -> None:
    with socket.socket(family, kind) as sock:
        assert refusal(sock.fileno()) == f"it is a socket ({word}) that takes no TCP or Unix connections"
        os.fstat(sock.fileno())
