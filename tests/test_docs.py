"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_holds_a_promise_of_security_is_there(file: str, name: str) -> None:
    tests = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^(async )?def {name or 'test_'}", tests, re.MULTILINE)
