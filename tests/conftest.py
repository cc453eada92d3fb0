"""How the tests run: over which networks, and the property tests with which examples."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests import networks
from tests.protocol.pieces import EFFORT

# The same examples each time, and no clock, since machines are slow at times.
settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, max_examples=100 * EFFORT
)
settings.load_profile("deterministic")


@pytest.fixture(
    params=[networks.MEMORY, networks.SOCKETS, networks.TLS_OVER_SOCKETS], ids=["memory", "sockets", "TLS"]
)
def network_of_all(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test's connections made over memory, then over sockets, and then over sockets with TLS."""
    monkeypatch.setattr(networks, "chosen", request.param)
