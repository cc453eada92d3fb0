"""
What becomes of the memory of large messages once they are freed.

glibc gives it back to the system whenever there is a little of it, and each page of the next message costs a page
fault: a quarter of the CPU time that echoing a message of 1 MiB takes.
"""

from __future__ import annotations

from trio_ws_server.config import MIB

KEPT = 32 * MIB
"""Bytes of freed memory that the process keeps at most."""


def keep_freed_memory() -> None:
    """
    Have the process keep so much for its next messages.

    Once glibc has seen a piece of memory of its own mapping freed, it takes smaller ones from the heap, and keeps
    twice the size of it there (mallopt(3), ``M_MMAP_THRESHOLD``): what the first message of that size would bring
    about is brought about at once. None of it is touched. Elsewhere it does nothing.
    """
    bytes(KEPT // 2)
