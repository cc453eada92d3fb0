"""How the property tests run: the same examples each time, and no clock, since machines are slow at times."""

from __future__ import annotations

import os

from hypothesis import settings

EFFORT = int(os.environ.get("PROPERTY_TEST_EFFORT", "1"))
"""How many times as many examples as usual are tried, for those who look for mistakes at leisure."""

settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, max_examples=100 * EFFORT
)
settings.load_profile("deterministic")
