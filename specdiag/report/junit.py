"""JUnit XML as CI servers read it: suite = checkpoint, case = analyzer.metric.

Valid against both schemas in use: the Ant one (every attribute required there is given, nothing beyond it) and
Jenkins's. `failure`: a gate failed; `error`: a job failed or a gate could not be judged; `skipped`: work left out, or a
gate that is to be investigated, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from xml.etree import ElementTree

from specdiag.gate.judge import Verdict
from specdiag.report.content import Content

_SECOND = "%Y-%m-%dT%H:%M:%S"
# what XML 1.0 cannot hold
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class _Case:
    classname: str
    name: str
    seconds: float = 0.0
    outcome: Literal["", "failure", "error", "skipped"] = ""
    kind: str = ""
    text: str = ""


def render(content: Content, when: datetime | None = None) -> str:
    """The document; `when` it was made (default: now). `investigate` is a failure where `content.strict` says so."""
    stamp = (when or datetime.now(UTC)).strftime(_SECOND)
    suites: dict[str, dict[tuple[str, str], _Case]] = {}
    for stored in content.results:
        case = _Case(stored.name, stored.analyzer, content.seconds.get((stored.name, stored.analyzer), 0.0))
        suites.setdefault(stored.name, {})[stored.analyzer, ""] = case
    for trouble in content.failures:
        case = _Case(trouble.name, trouble.analyzer, 0.0, "error", trouble.kind, trouble.text)
        suites.setdefault(trouble.name, {})[trouble.analyzer, ""] = case
    for omitted in content.omitted:
        name, _, analyzer = omitted.what.partition(" · ")
        case = _Case(name, analyzer or "checkpoints", 0.0, "skipped", "skipped", omitted.reason)
        suites.setdefault(name if analyzer else "specdiag", {})[omitted.what, ""] = case
    for verdict in content.verdicts:
        suite = suites.setdefault(verdict.checkpoint or "specdiag", {})
        _add(suite, verdict, content.strict)
    root = ElementTree.Element("testsuites")
    for number, (name, cases) in enumerate(suites.items()):
        root.append(_suite(number, name, list(cases.values()), stamp))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add(suite: dict[tuple[str, str], _Case], verdict: Verdict, strict: bool) -> None:
    """One case per number: several limits on it share the case, the worst decides (verdicts come worst first)."""
    if verdict.outcome == "skipped":
        return
    name = verdict.name if verdict.metric else str(verdict.rule)
    case = suite.setdefault((name, "gate"), _Case(verdict.checkpoint or "specdiag", name))
    outcome = _outcome(verdict, strict)
    if outcome and not case.outcome:
        case.outcome, case.kind = outcome, verdict.outcome
    if outcome:
        notes = "".join(f"\n{note}" for note in verdict.notes)
        case.text = "\n".join(filter(None, [case.text, verdict.text + notes]))


def _outcome(verdict: Verdict, strict: bool) -> Literal["", "failure", "error", "skipped"]:
    if verdict.outcome == "error":
        return "error"
    if verdict.outcome == "fail":
        return "failure"
    if verdict.outcome == "investigate":
        return "failure" if strict else "skipped"
    return ""


def _suite(number: int, name: str, cases: list[_Case], stamp: str) -> ElementTree.Element:
    def count(outcome: str) -> str:
        return str(sum(case.outcome == outcome for case in cases))

    suite = ElementTree.Element(
        "testsuite",
        {
            "id": str(number),
            "package": "specdiag",
            "name": _clean(name),
            "timestamp": stamp,
            "hostname": "localhost",
            "tests": str(len(cases)),
            "failures": count("failure"),
            "errors": count("error"),
            "skipped": count("skipped"),
            "time": f"{sum(case.seconds for case in cases):.3f}",
        },
    )
    ElementTree.SubElement(suite, "properties")
    for case in cases:
        suite.append(_element(case))
    ElementTree.SubElement(suite, "system-out").text = _clean(_lines(cases))
    ElementTree.SubElement(suite, "system-err")
    return suite


def _lines(cases: Iterable[_Case]) -> str:
    return "\n".join(f"{case.kind}: {case.text}" for case in cases if case.outcome)


def _element(case: _Case) -> ElementTree.Element:
    element = ElementTree.Element(
        "testcase",
        {"name": _clean(case.name), "classname": _clean(case.classname), "time": f"{case.seconds:.3f}"},
    )
    if case.outcome:
        message = _clean(" ".join(case.text.split()))
        attributes = (
            {"message": message} if case.outcome == "skipped" else {"message": message, "type": case.kind}
        )
        inner = ElementTree.SubElement(element, case.outcome, attributes)
        if case.outcome != "skipped":
            inner.text = _clean(case.text)
    return element


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
