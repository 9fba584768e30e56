"""Markdown for the summary of a CI job: gates worst first, then metrics, small."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdiag.errors import ResultsError
from specdiag.gate.judge import Verdict
from specdiag.report.content import Content, interval_of, shown
from specdiag.report.terminal import format_number
from specdiag.store import provenance

# the summary of a GitHub step holds 1 MiB; a page that long is read by nobody
LARGEST = 200_000
_ROWS = 50
_SIGNS = {"error": "⚠️ not judged", "fail": "❌ fail", "investigate": "🔍 investigate", "pass": "✅ pass"}


def render(content: Content) -> str:
    """The summary as Markdown, at most LARGEST characters."""
    lines = [f"## specdiag: {content.headline}", ""]
    lines += _gates(content.verdicts)
    if content.failures:
        lines += ["### Failures", ""]
        lines += [
            f"- **{_cell(item.name)} · {_cell(item.analyzer)}** (exit code {item.code}): {_cell(item.text)}"
            for item in content.failures
        ]
        lines.append("")
    if content.omitted:
        lines += ["### Skipped", ""]
        lines += [f"- {_cell(item.what)}: {_cell(item.reason)}" for item in content.omitted]
        lines.append("")
    lines += _metrics(content)
    text = "\n".join(lines).rstrip() + "\n"
    if len(text) > LARGEST:
        text = text[:LARGEST].rsplit("\n", 1)[0] + "\n\nThe rest is left out: the report is too long.\n"
    return text


def summary_file() -> Path | None:
    """The job summary that the CI offers, or None."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path else None


def append(text: str, path: Path) -> None:
    """Add the text to a file, which other steps may have written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except OSError as error:
        raise ResultsError(f"Cannot write the summary {path}: {error.strerror or error}.") from error


def _gates(verdicts: Sequence[Verdict]) -> list[str]:
    judged = [verdict for verdict in verdicts if verdict.outcome != "skipped"]
    if not judged:
        return []
    lines = ["### Gates", ""]
    lines += _table(
        ["", "checkpoint", "metric", "value", "baseline", "change", "interval", "limit"],
        [_gate_row(verdict) for verdict in judged[:_ROWS]],
    )
    if len(judged) > _ROWS:
        lines.append(f"and {len(judged) - _ROWS} more, none worse")
    notes = list(dict.fromkeys(_remarks(judged[:_ROWS])))
    return [*lines, "", *(f"- {_cell(note)}" for note in notes), *([""] if notes else [])]


def _remarks(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The sentence of every verdict that is no plain pass, and what limits the comparisons."""
    for verdict in verdicts:
        if verdict.outcome != "pass":
            yield f"{verdict.checkpoint}: {verdict.text}" if verdict.checkpoint else verdict.text
    for verdict in verdicts:
        yield from (f"{verdict.name}: {note}" for note in verdict.notes)


def _gate_row(verdict: Verdict) -> list[str]:
    limit = verdict.limit
    return [
        _SIGNS[verdict.outcome],
        verdict.checkpoint or verdict.rule.checkpoint,
        f"`{verdict.name}`",
        "" if not verdict.metric else format_number(verdict.value),
        "" if math.isnan(verdict.baseline) else format_number(verdict.baseline),
        shown(verdict.judged, limit) if limit is not None and limit.compares else "",
        interval_of(verdict),
        f"`{limit}`" if limit is not None else "",
    ]


def _metrics(content: Content) -> list[str]:
    rows = []
    for stored in content.results:
        for name, metric in provenance(stored.dataset).get("metrics", {}).items():
            rows.append(
                [stored.name, f"`{stored.analyzer}.{name}`", _value(metric), str(metric.get("unit", ""))]
            )
    if not rows:
        return []
    many = len(rows) > _ROWS
    lines = [f"<details><summary>Metrics ({len(rows)})</summary>", ""]
    lines += _table(["checkpoint", "metric", "value", "unit"], rows[: 4 * _ROWS])
    if len(rows) > 4 * _ROWS:
        lines.append(f"and {len(rows) - 4 * _ROWS} more")
    if many:
        lines += ["", "The HTML report and the results files hold all of them."]
    return [*lines, "", "</details>"]


def _value(metric: Mapping[str, Any]) -> str:
    value = metric.get("value")
    if not isinstance(value, list):
        return format_number(value, metric.get("error"))
    finite = [entry for entry in value if entry is not None and math.isfinite(entry)]
    if not finite:
        return "nan"
    kind = "/".join(metric.get("dims") or []) or "entry"
    return f"{format_number(min(finite))} to {format_number(max(finite))} (per {kind})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    """Text that breaks no table and cannot pass for markup."""
    plain = " ".join(text.split()).replace("|", "\\|")
    return plain if plain.startswith("`") else plain.replace("<", "&lt;")
