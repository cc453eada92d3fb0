"""What large messages have taken is there for the next ones."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
from resource import RUSAGE_SELF, getrusage
from trio_ws_server.memory import keep_freed_memory
{call}
for round in range(20):
    if round == 10:
        before = getrusage(RUSAGE_SELF).ru_minflt
    messages = [b"x" * 1_000_000 for _ in range(8)]
    del messages
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str) -> int:
    """Return how many it takes to use and free 8 MB ten times over, in a fresh process."""
    return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(call=call)]))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back so soon")
def test_memory_is_used_again_without_page_faults() -> None:
    once = 8_000_000 // resource.getpagesize()
    assert page_faults("") > 5 * once
    assert page_faults("keep_freed_memory()") < once / 10
