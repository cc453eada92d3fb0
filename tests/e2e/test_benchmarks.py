"""The load of the benchmarks on real servers, ours and the one in C, and runs of several."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.measuring import Timing, load_on, measure, started
from benchmarks.processes import ProcessError
from benchmarks.programs import compile_all
from benchmarks.runs import TRIES, Run
from benchmarks.servers import SERVERS
from benchmarks.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.works import Work

TIMING = Timing(warm_up=0.05, window=0.2)

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux, a C compiler and two cores",
)


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """Compile the load and the server in C."""
    compile_all()


def starting(*command: str) -> Callable[[Work, int], list[str]]:
    """Return what starts a server by the same command whatever the work."""
    return lambda _work, _port: [*command]


@pytest.mark.parametrize(
    ("server", "work"),
    [
        ("asgi", "connect"),
        ("asgi", "deflate"),
        ("asgi", "fan-out"),
        ("asgi", "pipelined"),
        ("native", "fan-out"),
        ("native", "small"),
        ("streams", "small"),
        ("least", "connect"),
        ("least", "deflate"),
        ("least", "fan-out"),
        ("least", "pipelined"),
        ("least-native", "small"),
        ("c", "1m"),
        ("c", "connect"),
        ("c", "pipelined"),
    ],
)
def test_what_comes_back_is_counted(server: str, work: str) -> None:
    measurement = measure(SERVERS[server], WORKS[work], TIMING)

    assert measurement.rate > 0
    assert measurement.cpu_seconds > 0


@pytest.mark.parametrize(("server", "epolls"), [("asgi", 2), ("streams", 1)])
def test_the_server_over_streams_has_only_the_epoll_of_trio(server: str, epolls: int) -> None:
    with started(SERVERS[server], WORKS["small"]) as process:
        # It listens before it has all that it needs, but serves nobody before.
        with socket.create_connection(("127.0.0.1", process.port), 10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(1024)
        descriptors = []
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            # A connection may be closed meanwhile.
            with suppress(FileNotFoundError):
                descriptors.append(os.readlink(link))

    assert descriptors.count("anon_inode:[eventpoll]") == epolls


def test_no_more_messages_come_back_than_were_due_at_the_offered_rate() -> None:
    measurement = measure(SERVERS["c"], WORKS["latency"], Timing(warm_up=0.2, window=1), rate=1000)

    assert measurement.rate == pytest.approx(1000, rel=0.2)
    assert 0 < measurement.latency_50 <= measurement.latency_99 < 1


def test_latency_counts_from_when_a_message_was_due_even_if_it_does_not_come_back_in_time() -> None:
    # 1,000 times what there is time for: what is still under way at the end has waited for most of the window.
    heavy = replace(WORKS["latency"], connections=1, frames=WORKS["1m"].frames)

    measurement = measure(SERVERS["asgi"], heavy, Timing(warm_up=0.05, window=0.5), rate=100_000)

    assert measurement.latency_50 > 0.1


def test_the_pings_to_idle_connections_are_counted() -> None:
    work = replace(WORKS["keepalive"], connections=1000, ping_interval=1)

    measurement = measure(SERVERS["asgi"], work, TIMING)

    assert measurement.rate == pytest.approx(1000, rel=0.5)
    assert measurement.cpu_seconds > 0


def test_idle_connections_take_memory() -> None:
    work = replace(WORKS["idle"], connections=200)

    assert 1024 < measure(SERVERS["asgi"], work, TIMING).connection_bytes < 256 * 1024


def test_a_server_that_does_not_do_what_the_work_asks_fails_it() -> None:
    with pytest.raises(ProcessError, match="opening handshake was answered with"):
        measure(SERVERS["c"], WORKS["deflate"], TIMING)


def test_a_server_that_does_not_start_fails_with_what_it_said() -> None:
    broken = replace(SERVERS["asgi"], command=starting("cat", "/no such file"))

    with pytest.raises(ProcessError, match="No such file"):
        measure(broken, WORKS["small"], TIMING)


def test_the_server_is_gone_in_the_end() -> None:
    with (
        started(SERVERS["asgi"], WORKS["small"]) as process,
        load_on(process, WORKS["small"], TIMING) as load,
    ):
        load.result()

    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the peer picows not start, and websockets not be installed."""
    for name, program in ("picows", "false"), ("websockets-uvloop", "/no such file"):
        monkeypatch.setitem(SERVERS, name, replace(SERVERS[name], command=starting(program)))


@pytest.mark.usefixtures("broken")
def test_servers_that_fail_are_told_of_and_do_not_spoil_the_rest() -> None:
    run = Run([WORKS["small"], WORKS["pipelined"]], ["picows", "websockets-uvloop", "c"], TIMING)

    run.find_rates()
    run.add_round()

    (this,) = run.rounds
    assert this.keys() == {("small", "c"), ("pipelined", "c")}
    uvloop, picows = run.failures
    assert uvloop.startswith("websockets + uvloop at 64 B text, 100 connections")
    assert "/no such file" in uvloop
    assert picows.startswith("picows + uvloop at 64 B text, 10 connections")
    assert "the server ended with status 1" in picows


@pytest.mark.usefixtures("broken")
def test_a_server_that_keeps_failing_at_a_work_is_not_given_it_any_more() -> None:
    run = Run([WORKS["pipelined"]], ["picows"], TIMING)

    for _ in range(TRIES + 1):
        run.add_round()

    assert len(run.failures) == TRIES


def test_a_work_that_takes_long_is_done_in_some_rounds_only() -> None:
    run = Run([replace(WORKS["pipelined"], rounds=1), WORKS["64k"]], ["c"], TIMING)

    run.add_round()
    run.add_round()

    assert [{work for work, _ in one} for one in run.rounds] == [{"pipelined", "64k"}, {"64k"}]


def test_a_rate_that_no_peer_tells_is_told_of_and_nothing_is_measured_at_it() -> None:
    run = Run([WORKS["latency"]], ["asgi"], TIMING)

    run.find_rates()
    run.add_round()

    assert run.rounds == [{}]
    (failure,) = run.failures
    assert failure.startswith("p99 latency at half the best peer's rate")
