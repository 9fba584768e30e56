"""Verdicts, failures and what was left out, as tables in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from specdiag.gate.judge import Verdict
from specdiag.report.content import Content, interval_of, shown
from specdiag.report.terminal import format_number, print_table
from specdiag.store import provenance

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"error": "bold red", "fail": "bold red", "investigate": "yellow"}
_SHOWN = 60


def print_verdicts(content: Content, console: Console) -> None:
    """Gates worst first, then what is to be known of those that did not pass."""
    judged = [verdict for verdict in content.verdicts if verdict.outcome != "skipped"]
    if judged:
        titles = ["outcome", "checkpoint", "metric", "value", "change", "interval", "limit"]
        print_table(console, titles, [_row(verdict) for verdict in judged[:_SHOWN]])
        if len(judged) > _SHOWN:
            console.print(f"and {len(judged) - _SHOWN} more, none worse")
        console.print()
    for verdict in judged[:_SHOWN]:
        where = f"{verdict.checkpoint}: " if verdict.checkpoint else ""
        if verdict.outcome != "pass":
            _line(console, f"{verdict.outcome}: {where}{verdict.text}", _STYLES[verdict.outcome])
    for note in dict.fromkeys(f"note: {v.name}: {note}" for v in judged for note in v.notes):
        _line(console, note, "")
    for omitted in content.omitted:
        _line(console, f"skipped: {omitted.what}: {omitted.reason}", "")
    for trouble in content.failures:
        _line(console, f"failed: {trouble.name} · {trouble.analyzer}: {trouble.text}", "bold red")


def print_metrics(content: Content, console: Console) -> None:
    """One row per checkpoint and metric that is a single number; per-layer metrics are in their own reports."""
    rows = []
    for stored in content.results:
        for name, metric in provenance(stored.dataset).get("metrics", {}).items():
            if isinstance(metric.get("value"), list):
                continue
            value = format_number(metric.get("value"), metric.get("error"))
            better = str(metric.get("better") or "")
            rows.append(
                [
                    stored.name,
                    f"{stored.analyzer}.{name}",
                    value,
                    str(metric.get("unit") or ""),
                    "" if better == "neither" else better,
                ]
            )
    print_table(console, ["checkpoint", "metric", "value ± error", "unit", "better"], rows)
    if rows:
        console.print()


def _row(verdict: Verdict) -> list[str]:
    limit = verdict.limit
    return [
        verdict.outcome,
        verdict.checkpoint,
        verdict.name,
        format_number(verdict.value) if verdict.metric else "",
        shown(verdict.judged, limit) if limit is not None and limit.compares else "",
        interval_of(verdict),
        "" if limit is None else str(limit),
    ]


def _line(console: Console, text: str, style: str) -> None:
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)
