"""What a report is about: stored results, verdicts of gates, and what was not done. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.gate.judge import Verdict
from specdiag.gate.rules import Limit
from specdiag.report.terminal import format_number

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored result: name of its file (the role of its checkpoint), analyzer, dataset."""

    name: str
    analyzer: str
    path: Path
    dataset: xarray.Dataset


@dataclass(frozen=True, slots=True)
class Trouble:
    """A job that failed: of which checkpoint (`name`) and analyzer, the error, and the exit code it stands for."""

    name: str
    analyzer: str
    text: str
    code: int = 2
    kind: str = "SpecdiagError"


@dataclass(frozen=True, slots=True)
class Omitted:
    """Work that was not done, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a report shows.

    verdicts: worst first; seconds: of computing, by (name, analyzer), 0 where nothing was computed; config: the file
    whose gates were judged; strict: `investigate` counts as a failure.
    """

    results: Sequence[Stored]
    verdicts: Sequence[Verdict] = ()
    failures: Sequence[Trouble] = ()
    omitted: Sequence[Omitted] = ()
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    config: Path | None = None
    exit_code: int = 0
    strict: bool = False

    def count(self, outcome: str) -> int:
        """How many verdicts have this outcome."""
        return sum(verdict.outcome == outcome for verdict in self.verdicts)

    @property
    def headline(self) -> str:
        """One line: what was judged and how it came out."""
        checkpoints = len({stored.name for stored in self.results})
        parts = [counted(checkpoints, "checkpoint"), counted(len(self.results), "result")]
        if self.verdicts:
            outcomes = [
                f"{self.count(outcome)} {word}"
                for outcome, word in (
                    ("error", "not judged"),
                    ("fail", "failed"),
                    ("investigate", "to investigate"),
                    ("pass", "passed"),
                )
                if self.count(outcome)
            ]
            parts.append("gates: " + ", ".join(outcomes or ["none judged"]))
        else:
            parts.append("no gates")
        if self.failures:
            parts.append(counted(len(self.failures), "failure"))
        if self.omitted:
            parts.append(f"{len(self.omitted)} skipped")
        return "; ".join(parts)


def shown(value: float, limit: Limit | None) -> str:
    """A judged value, or a change with its sign; as a percentage where the limit is one."""
    if math.isnan(value):
        return ""
    if limit is None or not limit.compares or not math.isfinite(value):
        return format_number(value)
    return f"{100 * value:+.3g} %" if limit.relative else f"{value:+.4g}"


def interval_of(verdict: Verdict) -> str:
    """Both ends of the judged interval; empty where they show no difference or nothing was judged."""
    if verdict.low == verdict.high or not math.isfinite(verdict.low):
        return ""
    low, high = shown(verdict.low, verdict.limit), shown(verdict.high, verdict.limit)
    return "" if low == high else f"{low} to {high}"


def counted(number: int, word: str) -> str:
    """`1 gate`, `2 gates`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
