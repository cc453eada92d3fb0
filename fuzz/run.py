"""Runs one target under atheris, which brings libFuzzer: ``python -m fuzz.run TARGET [LIBFUZZER ARGUMENT...]``."""

from __future__ import annotations

import sys
from importlib import import_module

import atheris  # type: ignore[import-untyped]

INSTRUMENTED = ["trio_ws_server", "h11", "wsproto"]
"""The packages that coverage is counted in: ours, and those that its protocols stand on."""

if __name__ == "__main__":
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = import_module(f"fuzz.{sys.argv.pop(1)}")
    atheris.Setup(sys.argv, target.check)
    atheris.Fuzz()
