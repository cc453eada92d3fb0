"""The Autobahn runner chooses the cases that it says, and lets no result pass that is not the expected one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compliance.autobahn import spec
from compliance.autobahn.cases import EXPECTED, matching, quick
from compliance.autobahn.check import differences, figures
from compliance.autobahn.check import main as check

SPECS = Path(spec.__file__).parent
ROOT = SPECS.parents[1]


def result(case: str, behavior: str = "OK", closing: str = "OK") -> dict[str, Any]:
    """Return what the suite's index has for a case."""
    report = f"asgi_case_{case.replace('.', '_')}.json"
    return {"behavior": behavior, "behaviorClose": closing, "duration": 600, "reportfile": report}


GOOD = {"1.1.1": result("1.1.1"), "7.1.6": result("7.1.6", "INFORMATIONAL", "INFORMATIONAL")}


def test_only_ok_and_informational_are_ever_expected() -> None:
    assert Counter(EXPECTED.values()) == {"OK": 514, "INFORMATIONAL": 3}


WITH_COMPRESSION = matching(["12.*", "13.*"])


@pytest.mark.parametrize("subject", ["asgi", "native", "client", "asgi-streams"])
def test_the_quick_choice_has_all_cases_without_compression(subject: str) -> None:
    assert [case for case in EXPECTED if case not in WITH_COMPRESSION] == [
        case for case in quick(subject) if case not in WITH_COMPRESSION
    ]


def test_the_quick_choices_share_every_fifth_case_with_compression() -> None:
    shares = [
        [case for case in quick(subject) if case in WITH_COMPRESSION]
        for subject in ("asgi", "native", "client")
    ]
    assert [share[:2] for share in shares] == [
        ["12.1.5", "12.2.2"],
        ["12.1.10", "12.2.7"],
        ["12.1.15", "12.2.12"],
    ]
    assert Counter(case for share in shares for case in share) == dict.fromkeys(WITH_COMPRESSION[4::5], 1)
    # Each has cases of every subsection: of each agreement on windows and their context.
    subsections = {case.rpartition(".")[0] for case in WITH_COMPRESSION}
    assert all({case.rpartition(".")[0] for case in share} == subsections for share in shares)


def test_where_something_is_missing_the_quick_choice_has_no_cases_with_compression() -> None:
    assert set(quick("asgi-streams")).isdisjoint(WITH_COMPRESSION)


@pytest.mark.parametrize(
    ("what", "left"),
    [("poller", "False True"), ("masking", "True False"), ("poller,masking", "False False")],
)
def test_what_is_to_be_missing_is(what: str, left: str) -> None:
    program = f"""
from compliance.autobahn.without import take_away
take_away({what!r})
from trio_ws_server.protocol import frames
from trio_ws_server.transport import poller
print(poller.open_selector() is not None, frames.mask is not frames.mask_in_python)
"""
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).strip() == left


def test_patterns_choose_the_cases_of_a_section_and_keep_their_order() -> None:
    assert matching(["10.*", "1.2.*", "7.13.?"]) == [
        *(f"1.2.{n}" for n in range(1, 9)),
        "7.13.1",
        "7.13.2",
        "10.1.1",
    ]


def test_a_pattern_that_no_case_matches_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no case matches '8\.\*'"):
        matching(["1.*", "8.*"])


@pytest.mark.parametrize("template", ["fuzzingclient.json", "fuzzingserver.json"])
def test_the_spec_of_a_run_names_its_subject_and_its_cases(
    template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.main(str(SPECS / template), "native", "1234", "reports/native", "7.13.*")
    made = json.loads(capsys.readouterr().out)
    assert made.get("servers", [{"agent": "native", "url": made.get("url")}]) == [
        {"agent": "native", "url": "ws://127.0.0.1:1234"}
    ]
    assert (made["outdir"], made["cases"]) == ("reports/native", ["7.13.1", "7.13.2"])


def test_the_expected_results_make_no_difference(tmp_path: Path) -> None:
    assert differences(list(GOOD), GOOD, tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            result("1.1.1", "NON-STRICT"),
            "1.1.1: NON-STRICT, closing OK; expected: OK; see {}/asgi_case_1_1_1.html",
        ),
        (
            result("1.1.1", "OK", "UNCLEAN"),
            "1.1.1: OK, closing UNCLEAN; expected: OK; see {}/asgi_case_1_1_1.html",
        ),
        (result("7.1.6"), "7.1.6: OK, closing OK; expected: INFORMATIONAL; see {}/asgi_case_7_1_6.html"),
        (result("1.1.2"), "1.1.2: OK, closing OK; expected: not to be run; see {}/asgi_case_1_1_2.html"),
    ],
    ids=["worse", "closed otherwise", "better", "one too many"],
)
def test_another_result_is_a_difference_for_better_or_worse(
    changed: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    case = difference.partition(":")[0]
    assert differences(list(GOOD), GOOD | {case: changed}, tmp_path) == [difference.format(tmp_path)]


def test_a_case_that_was_not_run_is_a_difference(tmp_path: Path) -> None:
    assert differences([*GOOD, "1.1.2"], GOOD, tmp_path) == ["1.1.2: missing"]


def test_the_figures_count_results_and_add_up_seconds() -> None:
    assert figures(GOOD | {"1.1.2": result("1.1.2")}) == "3 cases in 2 s: 2 OK, 1 INFORMATIONAL"


@pytest.mark.parametrize(("behavior", "status"), [("OK", False), ("FAILED", True)])
def test_the_check_fails_if_and_only_if_there_is_a_difference(
    behavior: str, status: bool, tmp_path: Path
) -> None:
    made = tmp_path / "spec.json"
    made.write_text(json.dumps({"cases": ["1.1.1"]}))
    (tmp_path / "index.json").write_text(json.dumps({"asgi": {"1.1.1": result("1.1.1", behavior)}}))
    with pytest.raises(SystemExit) as ended:
        check(str(made), "asgi", str(tmp_path))
    assert ended.value.code is status


def test_reports_that_are_not_there_fail_the_check(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="asgi: no reports"):
        check(str(SPECS / "fuzzingclient.json"), "asgi", str(tmp_path))
