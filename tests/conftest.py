"""How the property tests run: the same examples each time, and no clock, since machines are slow at times."""

from __future__ import annotations

from hypothesis import settings

from tests.protocol.pieces import EFFORT

settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, max_examples=100 * EFFORT
)
settings.load_profile("deterministic")
