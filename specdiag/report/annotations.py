"""Annotations that a CI shows at the line of the configuration file: workflow commands of GitHub Actions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from specdiag.report.content import Content

_GATE = re.compile(r"\s*\[\[\s*(?:tool\s*\.\s*specdiag\s*\.\s*)?gate\s*\]\]")
_WORDS = {"error": "error", "fail": "error", "investigate": "warning"}


def wanted() -> bool:
    """Whether this process runs where annotations are read."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def lines(content: Content) -> Iterator[str]:
    """One workflow command per verdict that is no pass, and per failed job."""
    places = _places(content.config)
    for verdict in content.verdicts:
        if verdict.outcome not in _WORDS:
            continue
        place = f"file={_property(str(content.config))}" if content.config is not None else ""
        if verdict.rule.number <= len(places):
            place += f",line={places[verdict.rule.number - 1]}"
        subject = f"{verdict.checkpoint} {verdict.name}".strip()
        title = f"title={_property(f'specdiag {verdict.outcome}: {subject}')}"
        head = ",".join(part for part in (place, title) if part)
        yield f"::{_WORDS[verdict.outcome]} {head}::{_message(verdict.text)}"
    for item in content.failures:
        title = _property(f"specdiag: {item.name} {item.analyzer} failed")
        yield f"::error title={title}::{_message(item.text)}"


def _places(config: Path | None) -> list[int]:
    """Line numbers, from 1, of the [[gate]] headers."""
    if config is None or not config.is_file():
        return []
    text = config.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(text, 1) if _GATE.match(line)]


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
