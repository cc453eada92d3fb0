"""Connections get places as long as there are any; the others are turned away, and that is told once in a while."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from wsproto.events import RejectConnection

from tests.helpers import serving
from trio_ws_server.admission import MAX_REFUSED, REPORT_INTERVAL, Admission, Unavailable, Verdict
from trio_ws_server.config import Config
from trio_ws_server.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock

ADMITTED, REFUSED, DROPPED = Verdict
SERVER = ("192.0.2.2", 80)
UNIX = Peer(None, ("/run/socket", None))


def peer(host: str) -> Peer:
    return Peer((host, 4000), SERVER)


ANYONE = peer("192.0.2.1")


class Door:
    """Connections that come, and stay until told to leave."""

    def __init__(self, *, total: int | None = None, per_ip: int | None = None) -> None:
        self.admission = Admission(Config(limit_connections=total, limit_connections_per_ip=per_ip))
        self._inside: list[ExitStack] = []

    def enter(self, *peers: Peer) -> list[Verdict]:
        return [self._enter(peer) for peer in peers]

    def _enter(self, peer: Peer) -> Verdict:
        self._inside.append(ExitStack())
        return self._inside[-1].enter_context(self.admission.place(peer))

    def leave(self, number: int) -> None:
        """Let the connection that came as this one leave."""
        self._inside[number].close()

    def leave_all(self) -> None:
        for number in range(len(self._inside)):
            self.leave(number)


# Who gets a place.


async def test_without_limits_everyone_does() -> None:
    assert Door().enter(*[ANYONE] * 1000) == [ADMITTED] * 1000


async def test_beyond_the_limit_nobody_does_until_one_leaves() -> None:
    door = Door(total=2)
    assert door.enter(ANYONE, peer("::1"), UNIX) == [ADMITTED, ADMITTED, REFUSED]
    door.leave(0)
    assert door.enter(ANYONE, ANYONE) == [ADMITTED, REFUSED]


async def test_one_that_is_refused_and_leaves_makes_no_room() -> None:
    door = Door(total=1)
    assert door.enter(ANYONE, ANYONE) == [ADMITTED, REFUSED]
    door.leave(1)
    assert door.enter(ANYONE) == [REFUSED]


async def test_one_that_is_refused_for_its_address_takes_no_place_from_others() -> None:
    door = Door(total=2, per_ip=1)
    assert door.enter(ANYONE, ANYONE, peer("192.0.2.3")) == [ADMITTED, REFUSED, ADMITTED]


async def test_one_that_finds_no_room_at_all_takes_no_place_from_its_address() -> None:
    door = Door(total=1, per_ip=1)
    assert door.enter(UNIX, ANYONE) == [ADMITTED, REFUSED]
    door.leave(0)
    assert door.enter(ANYONE) == [ADMITTED]


async def test_a_connection_that_fails_gives_its_place_back() -> None:
    door = Door(total=1, per_ip=1)
    with pytest.raises(KeyError), door.admission.place(ANYONE):
        raise KeyError
    with trio.CancelScope() as scope, door.admission.place(ANYONE):
        scope.cancel()
        await trio.sleep_forever()
    assert door.enter(ANYONE) == [ADMITTED]


@pytest.mark.parametrize(
    ("hosts", "verdicts"),
    [
        (["192.0.2.1", "192.0.2.1"], [ADMITTED, REFUSED]),
        (["192.0.2.1", "192.0.2.3"], [ADMITTED, ADMITTED]),
        (["2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff"], [ADMITTED, REFUSED]),
        (["2001:db8:0:1::1", "2001:db8:0:2::1"], [ADMITTED, ADMITTED]),
        (["fe80::1%lo", "fe80::2%lo"], [ADMITTED, REFUSED]),
        (["::ffff:192.0.2.1", "192.0.2.1"], [ADMITTED, REFUSED]),
        (["::ffff:192.0.2.1", "::ffff:192.0.2.3"], [ADMITTED, ADMITTED]),
        (["::c000:201", "192.0.2.1"], [ADMITTED, ADMITTED]),
    ],
)
async def test_an_ipv4_address_is_one_client_and_so_is_a_64_of_ipv6(
    hosts: Sequence[str], verdicts: list[Verdict]
) -> None:
    assert Door(per_ip=1).enter(*map(peer, hosts)) == verdicts


async def test_a_unix_sockets_clients_have_no_address_to_be_limited_by() -> None:
    assert Door(per_ip=1).enter(UNIX, UNIX, UNIX) == [ADMITTED] * 3


async def test_so_many_are_refused_at_a_time_and_the_rest_dropped() -> None:
    door = Door(total=1)
    assert (
        door.enter(*[ANYONE] * (1 + MAX_REFUSED + 2)) == [ADMITTED] + [REFUSED] * MAX_REFUSED + [DROPPED] * 2
    )
    door.leave(-1)
    assert door.enter(ANYONE) == [DROPPED]
    door.leave(1)
    assert door.enter(ANYONE, ANYONE) == [REFUSED, DROPPED]
    door.leave_all()
    assert door.enter(ANYONE) == [ADMITTED]


async def test_nothing_is_kept_of_clients_that_have_left() -> None:
    door = Door(total=200, per_ip=1)
    before = pickle.dumps(door.admission)
    assert door.enter(*(peer(f"2001:db8:0:{number:x}::1") for number in range(200))) == [ADMITTED] * 200
    door.leave_all()
    assert pickle.dumps(door.admission) == before


# What is logged.


async def test_connections_turned_away_are_logged_at_once_and_then_in_sum(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(total=1, per_ip=1)
    door.enter(ANYONE)
    assert caplog.messages == []
    door.enter(*[ANYONE] * (MAX_REFUSED + 50))
    assert caplog.messages == [
        "Answered 1 connections with 503 and dropped 0; the last was 192.0.2.1:4000, beyond --limit-connections 1"
    ]
    mock_clock.jump(REPORT_INTERVAL)
    door.leave(0)
    door.enter(UNIX, peer("2001:db8::1"))
    assert caplog.messages[1:] == [
        f"Answered {MAX_REFUSED - 1} connections with 503 and dropped 50; "
        "the last was 192.0.2.1:4000, beyond --limit-connections 1"
    ]


async def test_the_limit_that_was_met_is_named(caplog: pytest.LogCaptureFixture) -> None:
    Door(per_ip=2).enter(*[peer("2001:db8::1")] * 3)
    assert caplog.messages == [
        "Answered 1 connections with 503 and dropped 0; "
        "the last was [2001:db8::1]:4000, beyond --limit-connections-per-ip 2"
    ]


async def test_nothing_is_logged_where_nobody_is_turned_away(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(total=1)
    door.enter(ANYONE, ANYONE)
    assert len(caplog.messages) == 1
    mock_clock.jump(REPORT_INTERVAL)
    door.leave_all()
    assert door.enter(ANYONE) == [ADMITTED]
    assert len(caplog.messages) == 1


# What those get who are refused.


async def test_a_request_is_answered_with_503_and_when_to_try_again() -> None:
    async with serving(Unavailable()) as client:
        response, body = await client.request()
        assert (response.status_code, body) == (503, b"Too many connections: try again later\n")
        assert dict(response.headers)[b"retry-after"] == b"5"
        assert dict(response.headers)[b"connection"] == b"close"
        assert await client.receive_all() == b""


async def test_a_websocket_handshake_is_answered_so_too() -> None:
    async with serving(Unavailable()) as client:
        refused = await client.open()
        assert isinstance(refused, RejectConnection)
        assert refused.status_code == 503
        assert (b"retry-after", b"5") in refused.headers
