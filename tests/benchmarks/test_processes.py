"""What processes are allowed."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from benchmarks.processes import ProcessError, allow_open_files

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """Return how many files may be open if allowed; at first, 256 are."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))


def test_the_limit_of_open_files_is_raised_where_it_is_too_low(hard_limit: int) -> None:
    allow_open_files(300)

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard_limit)


def test_the_limit_of_open_files_stays_where_it_is_enough(hard_limit: int) -> None:
    allow_open_files(200)

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard_limit)


def test_more_open_files_than_the_hard_limit_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 4096))

    with pytest.raises(ProcessError, match=r"needs 10,200 open files .* more than 4,096 .*ulimit -Hn"):
        allow_open_files(10_200)


def test_where_there_is_no_limit_of_open_files_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with monkeypatch.context() as patches:
        patches.setattr(resource, "getrlimit", lambda _which: unlimited)

        allow_open_files(10_200)

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
