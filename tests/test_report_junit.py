"""JUnit XML: the rules of the Ant schema (the stricter of the two that CI servers use), written out as checks."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from report_common import NASTY, content

from specdiag.report import junit
from specdiag.report.content import Content, Trouble

SUITE = {"id", "package", "name", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time"}


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    assert not root.attrib
    for number, suite in enumerate(root):
        assert suite.tag == "testsuite"
        assert set(suite.attrib) == SUITE
        assert int(suite.attrib["id"]) == number
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert float(suite.attrib["time"]) >= 0
        for name in ("name", "package", "hostname"):
            token(suite.attrib[name])
        kinds = [child.tag for child in suite]
        assert kinds[0] == "properties"
        assert kinds[-2:] == ["system-out", "system-err"]
        assert set(kinds[1:-2]) <= {"testcase"}
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
        for tag, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.attrib[counted]) == len(suite.findall(f"testcase/{tag}"))
        names = [(case.attrib["classname"], case.attrib["name"]) for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            check_case(case)
    return root


def check_case(case: ElementTree.Element) -> None:
    assert set(case.attrib) == {"name", "classname", "time"}
    assert re.fullmatch(r"\d+\.\d+", case.attrib["time"])
    token(case.attrib["name"])
    token(case.attrib["classname"])
    assert len(case) <= 1
    for inner in case:
        assert inner.tag in ("skipped", "error", "failure")
        assert set(inner.attrib) == ({"message"} if inner.tag == "skipped" else {"message", "type"})
        assert len(inner) == 0


def token(text: str) -> None:
    """xs:token: no line breaks or tabs, no blanks at the ends, none doubled."""
    assert text
    assert " ".join(text.split()) == text


def outcomes(root: ElementTree.Element, suite: str) -> dict[str, str]:
    found = root.find(f"testsuite[@name='{suite}']")
    assert found is not None
    return {case.attrib["name"]: case[0].tag if len(case) else "" for case in found.findall("testcase")}


def test_suites_are_checkpoints_and_cases_metrics(tmp_path: Path) -> None:
    root = parsed(junit.render(content(tmp_path), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    assert [suite.attrib["name"] for suite in root] == ["good", "bad", "broken", "specdiag", "old"]
    assert outcomes(root, "good") == {
        "spectrum": "",
        "spectrum.sigma_max_mean": "",
    }
    assert outcomes(root, "specdiag") == {
        "checkpoints": "skipped",
        "gate 3 (spectrum.sigma_max_p95, checkpoint good: max_increase = 10 %)": "error",
    }
    assert outcomes(root, "bad") == {
        "spectrum": "",
        "spectrum.sigma_max_mean": "failure",
        "spectrum.frobenius_mean": "skipped",
    }
    assert outcomes(root, "broken") == {"spectrum": "error"}
    assert outcomes(root, "old") == {"spectrum": "skipped"}
    assert root[0].attrib["timestamp"] == "2026-01-02T03:04:05"
    failure = root.find("testsuite[@name='bad']/testcase/failure")
    assert failure is not None
    assert failure.text is not None
    assert "beyond max = 4" in failure.text
    error = root.find("testsuite[@name='broken']/testcase/error")
    assert error is not None
    assert error.attrib["type"] == "CheckpointError"
    assert NASTY in error.attrib["message"]


def test_investigate_fails_where_the_build_does(tmp_path: Path) -> None:
    root = parsed(junit.render(content(tmp_path, strict=True)))
    assert outcomes(root, "bad")["spectrum.frobenius_mean"] == "failure"


def test_characters_that_xml_cannot_hold(tmp_path: Path) -> None:
    odd = Content([], failures=[Trouble("a", "spectrum", "bell \x07 and null \x00 and \ufffe", 2)])
    root = parsed(junit.render(odd))
    error = root.find(".//error")
    assert error is not None
    assert error.attrib["message"] == "bell ? and null ? and ?"


def test_nothing_is_still_a_document() -> None:
    assert len(parsed(junit.render(Content([])))) == 0
