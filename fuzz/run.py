"""Runs one target under atheris, which brings libFuzzer: ``python -m fuzz.run TARGET [LIBFUZZER ARGUMENT...]``."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import atheris  # type: ignore[import-untyped]

from fuzz.lines import mutated

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

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, target.LINES, seed)[:max_size]

    options = {"custom_mutator": mutate} if hasattr(target, "LINES") else {}
    atheris.Setup(sys.argv, check, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
