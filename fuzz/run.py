"""Runs one target under atheris, which brings libFuzzer: ``python -m fuzz.run TARGET [LIBFUZZER ARGUMENT...]``."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import atheris  # type: ignore[import-untyped]

INSTRUMENTED = ["trio_ws_server", "h11", "wsproto"]
"""The packages that coverage is counted in: ours, and those that its protocols stand on."""


def main() -> None:
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = import_module(f"fuzz.{sys.argv.pop(1)}")

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except Exception:
            # The alarm for libFuzzer's -timeout goes on, and would kill an interpreter that is about to end, before
            # the input is kept.
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise

    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
