"""Fixtures for the tests of the protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.speedups import apply_mask

from trio_ws_server.protocol import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", params=[apply_mask, frames.mask_in_python], ids=["in C", "in Python"])
def masking(request: pytest.FixtureRequest) -> Iterator[Callable[[bytes, bytes], bytes]]:
    """Have frames masked and unmasked by either function."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(frames, "mask", request.param)
        yield request.param
