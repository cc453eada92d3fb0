"""What the fuzzers start from holds their invariants: each input of `fuzz/corpus`, once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
INPUTS = sorted(path.relative_to(CORPUS) for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=str)
def test_an_input_of_the_corpus_holds_its_targets_invariant(path: Path) -> None:
    target = import_module(f"fuzz.{path.parent}")
    target.check((CORPUS / path).read_bytes())


@pytest.mark.parametrize("target", ["deflate", "frames", "handshake", "request_head"])
def test_a_target_has_a_corpus(target: str) -> None:
    assert target in {path.parent.name for path in INPUTS}
