"""The programs in C: the load, and the echo server on epoll. ``python -m benchmarks.programs`` compiles them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent
BUILD = _SOURCES / "build"
"""Where they are, with whatever else is made here and not kept."""

LOAD = BUILD / "load"
ECHO = BUILD / "echo"


def compile_all() -> None:
    """Compile them. Raises ``subprocess.CalledProcessError``; ``FileNotFoundError`` if there is no compiler."""
    BUILD.mkdir(exist_ok=True)
    for program in LOAD, ECHO:
        source = _SOURCES / f"{program.name}.c"
        # Aside, and then put in its place: somebody else may be running what is there.
        with tempfile.TemporaryDirectory(dir=BUILD) as aside:
            made = Path(aside, program.name)
            subprocess.run(
                ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, source], check=True
            )
            made.replace(program)


if __name__ == "__main__":
    compile_all()
