"""What the profile makes of stacks."""

from __future__ import annotations

from benchmarks.profiling import place, tally

OUTER = "<module> (server:8);run (trio/_core/_run.py:2535)"


def test_a_python_function_is_named_with_its_file_whatever_its_line() -> None:
    assert place(f"{OUTER};WebSocket.send (trio_ws_server/websocket.py:159)") == (
        "WebSocket.send (trio_ws_server/websocket.py)"
    )


def test_what_is_in_c_counts_for_the_function_that_called_it() -> None:
    assert place(f"{OUTER};echo (benchmarks/apps.py:9);list_append (Objects/listobject.c:12)") == (
        "echo (benchmarks/apps.py)"
    )


def test_a_system_call_stands_for_itself() -> None:
    assert place(f"{OUTER};write (a/socket.py:55);sock_send (socketmodule.c:4207);__send (libc.so.6)") == (
        "send, a system call, in write (a/socket.py)"
    )


def test_waiting_for_events_does_not_count() -> None:
    counts = tally([f"{OUTER};epoll_wait (libc.so.6) 97", f"{OUTER};f (a.py:1) 2", f"{OUTER};f (a.py:2) 1"])

    assert counts == {"f (a.py)": 3}
