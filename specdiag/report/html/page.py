"""The parts of the HTML report, each a string; everything that comes from results is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from specdiag.gate.judge import Verdict
from specdiag.report.content import Content, Stored, interval_of, shown
from specdiag.report.terminal import format_number
from specdiag.store import provenance

_WORDS = {
    "error": "not judged",
    "fail": "fail",
    "investigate": "investigate",
    "pass": "pass",
    "skipped": "skipped",
}

# longer lists, such as training curves, are cut in the settings
_LISTED = 8


def gates(content: Content, links: Mapping[tuple[str, str], str]) -> str:
    """The section of the gates, worst first; links: settings of (checkpoint, analyzer)."""
    if not content.verdicts:
        return "<p class='note'>No gates were judged: the configuration has none, or none was named.</p>"
    chips = "".join(
        f"<li class='chip {outcome}'>{content.count(outcome)} {word}</li>"
        for outcome, word in _WORDS.items()
        if content.count(outcome)
    )
    titles = ["outcome", "checkpoint", "metric", "value", "change", "interval", "limit", ""]
    rows = "".join(_gate_row(verdict, links) for verdict in content.verdicts)
    return f"<ul class='chips'>{chips}</ul>" + table(titles, rows, "gates", plain=(7,))


def _gate_row(verdict: Verdict, links: Mapping[tuple[str, str], str]) -> str:
    limit = verdict.limit
    compares = limit is not None and limit.compares
    link = links.get((verdict.checkpoint, verdict.analyzer))
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in verdict.notes)
    order = list(_WORDS).index(verdict.outcome)
    change = shown(verdict.judged, limit) if compares else ""
    return "".join(
        (
            "<tr>",
            f"<td data-v='{order}'><span class='mark {verdict.outcome}'>{_WORDS[verdict.outcome]}</span></td>",
            f"<td class='who'>{escape(verdict.checkpoint or verdict.rule.checkpoint)}</td>",
            f"<td class='metric'><code>{escape(verdict.name)}</code><p>{escape(verdict.text)}</p>{notes}</td>",
            _number_cell(verdict.value, format_number(verdict.value) if verdict.metric else "", "value"),
            _number_cell(verdict.judged if compares else math.nan, change, "change"),
            f"<td class='bar' data-title='interval'>{_interval(verdict)}</td>",
            f"<td data-title='limit'>{escape(str(limit) if limit is not None else '')}</td>",
            f"<td>{_settings_link(link)}</td>" if link else "<td></td>",
            "</tr>",
        )
    )


def _interval(verdict: Verdict) -> str:
    """The interval as a line with its estimate, and the limit as an upright stroke."""
    limit = verdict.limit
    if limit is None or not all(map(math.isfinite, (verdict.low, verdict.high, verdict.judged))):
        return ""
    bound = -limit.value if limit.kind == "max_decrease" else limit.value
    ends = [verdict.low, verdict.high, bound, verdict.judged]
    low, high = min(ends), max(ends)
    span = (high - low) or abs(high) or 1.0

    def at(value: float) -> str:
        return f"{8 + 114 * (value - low) / span:.1f}"

    words = interval_of(verdict) or shown(verdict.judged, limit)
    title = escape(f"{words}; limit {shown(bound, limit)}")
    colour = {"fail": "--fail", "error": "--fail", "investigate": "--look"}.get(verdict.outcome, "--pass")
    return (
        f"<svg viewBox='0 0 130 18' role='img' aria-label='{title}'><title>{title}</title>"
        f"<line x1='{at(bound)}' x2='{at(bound)}' y1='1' y2='17' style='stroke:var(--ink);stroke-width:1.5'/>"
        f"<line x1='{at(verdict.low)}' x2='{at(verdict.high)}' y1='9' y2='9' "
        f"style='stroke:var({colour});stroke-width:4;stroke-linecap:round'/>"
        f"<circle cx='{at(verdict.judged)}' cy='9' r='4.5' style='fill:var({colour})'/></svg>"
        f"<span class='note'>{escape(words)}</span>"
    )


def troubles(content: Content) -> str:
    """What failed and what was left out, with the reasons; empty where there is neither."""
    parts = []
    if content.failures:
        items = "".join(
            f"<li><span class='mark fail'>exit code {item.code}</span> <b>{escape(item.name)} · {escape(item.analyzer)}</b>: "
            f"{escape(item.text)}</li>"
            for item in content.failures
        )
        parts.append(f"<h2>Failures</h2><ul>{items}</ul>")
    if content.omitted:
        items = "".join(
            f"<li><b>{escape(item.what)}</b>: {escape(item.reason)}</li>" for item in content.omitted
        )
        parts.append(f"<h2>Skipped</h2><ul>{items}</ul>")
    return "".join(parts)


def metrics(results: Sequence[Stored], links: Mapping[tuple[str, str], str]) -> str:
    """One table of all single numbers, and one for each result with numbers per layer (or other label)."""
    rows, further = [], []
    for stored in results:
        found = provenance(stored.dataset).get("metrics") or {}
        link = links[stored.name, stored.analyzer]
        rows += [
            _metric_row(stored, name, m, link)
            for name, m in found.items()
            if not isinstance(m.get("value"), list)
        ]
        labelled = {name: m for name, m in found.items() if isinstance(m.get("value"), list)}
        if labelled:
            further.append(_labelled(stored, labelled, link))
    titles = ["checkpoint", "metric", "value", "std. error", "95 % interval", "samples", "unit", "better"]
    parts = []
    if rows:
        parts.append(
            "<input class='filter' type='search' data-table='metrics' placeholder='filter: words of a row' "
            "aria-label='filter the metrics'>"
        )
        parts.append(table(titles, "".join(rows), "metrics"))
    return "".join(parts + further)


def _metric_row(stored: Stored, name: str, metric: Mapping[str, Any], link: str) -> str:
    value, error, low, high = (_float(metric.get(key)) for key in ("value", "error", "low", "high"))
    interval = (
        f"{format_number(low)} to {format_number(high)}" if math.isfinite(low) and math.isfinite(high) else ""
    )
    better = str(metric.get("better") or "")
    count = metric.get("n")
    excluded = metric.get("excluded") or 0
    samples = "" if count is None else str(count) + (f" ({excluded} left out)" if excluded else "")
    return "".join(
        (
            f"<tr><td>{escape(stored.name)}</td><td class='metric'><code>{escape(f'{stored.analyzer}.{name}')}</code>"
            f"<p>{escape(str(metric.get('doc') or ''))} · {_settings_link(link)}</p></td>",
            _number_cell(value, format_number(value)),
            _number_cell(error, format_number(error) if math.isfinite(error) else ""),
            _number_cell(low, interval),
            _number_cell(math.nan if count is None else float(count), samples),
            f"<td>{escape(str(metric.get('unit') or ''))}</td>",
            f"<td>{'' if better == 'neither' else escape(better)}</td>",
            "</tr>",
        )
    )


def _labelled(stored: Stored, found: Mapping[str, Mapping[str, Any]], link: str) -> str:
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, metric in found.items():
        groups.setdefault(tuple(str(label) for label in metric.get("labels") or ()), {})[name] = metric
    parts = []
    for labels, metrics_of in groups.items():
        kind = "/".join(next(iter(metrics_of.values())).get("dims") or ["entry"])
        rows = "".join(
            f"<tr><td><code>{escape(label)}</code></td>"
            + "".join(
                _number_cell(_float(m["value"][row]), format_number(_float(m["value"][row])))
                for m in metrics_of.values()
            )
            + "</tr>"
            for row, label in enumerate(labels)
        )
        titles = [kind, *(f"{name} ({m.get('unit') or '1'})" for name, m in metrics_of.items())]
        title = f"{stored.name} · {stored.analyzer}: per {kind} ({len(labels)})"
        parts.append(
            f"<details><summary>{escape(title)}</summary><p>{_settings_link(link)}</p>{table(titles, rows)}</details>"
        )
    return "".join(parts)


def own_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table that an analyzer itself shows of a result."""
    if not rows:
        return ""
    body = "".join("<tr>" + "".join(_text_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<details><summary>{escape(title)}</summary>{table(titles, body)}</details>"


def settings(stored: Stored, identity: str) -> str:
    """Everything that made a result, as a definition list under its id."""
    facts = provenance(stored.dataset)
    made = facts.get("settings") or {}
    rest = {key: value for key, value in made.items() if key not in facts}
    kept = {key: facts.get(key) for key in ("analyzer", "source", "options", "data")}
    kept |= {
        **rest,
        **{key: facts.get(key) for key in ("device", "checkpoint", "train", "versions", "settings_hash")},
    }
    title = f"{stored.name} · {stored.analyzer}"
    remarks = [f"{entry.get('id')}: {entry.get('text')}" for entry in facts.get("warnings") or []]
    remarks += [str(note) for note in facts.get("notes") or []]
    notes = "".join(f"<p class='note'>{escape(remark)}</p>" for remark in remarks)
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in _flat(kept))
    return (
        f"<section class='settings' id='{identity}'><h3>{escape(title)}</h3>"
        f"<p class='note'>{escape(str(stored.path))}</p>{notes}<dl>{items}</dl></section>"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, f"{prefix}{key}.")
        elif entry not in (None, "", [], {}):
            if isinstance(entry, list) and len(entry) > _LISTED:
                yield f"{prefix}{key}", f"{json.dumps(entry[:_LISTED])[:-1]}, ...] ({len(entry)} values)"
            else:
                yield f"{prefix}{key}", entry if isinstance(entry, str) else json.dumps(entry)


def table(titles: Sequence[str], rows: str, identity: str = "", plain: Sequence[int] = ()) -> str:
    """A sortable table that scrolls by itself where it is too wide; `plain` columns do not sort."""
    heads = "".join(
        f"<th scope='col'>{escape(title)}</th>"
        if column in plain
        else f"<th scope='col'><button type='button'>{escape(title)}</button></th>"
        for column, title in enumerate(titles)
    )
    name = f" id='{identity}'" if identity else ""
    return (
        f"<div class='scroll' tabindex='0'><table class='sortable {identity}'{name}><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _number_cell(value: float, text: str, title: str = "") -> str:
    key = repr(value) if math.isfinite(value) else ""
    named = f" data-title='{title}'" if title else ""
    return f"<td class='num' data-v='{key}'{named}>{escape(text)}</td>"


def _text_cell(text: str) -> str:
    try:
        return _number_cell(float(text), text)
    except ValueError:
        return f"<td>{escape(text)}</td>"


def _settings_link(identity: str) -> str:
    return f"<a href='#{identity}' data-settings='{identity}'>settings</a>"


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
