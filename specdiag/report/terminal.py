"""One stored result as text: header, the analyzer's table, metrics, warnings, the plain sentence, files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from specdiag.store import provenance

if TYPE_CHECKING:
    from pathlib import Path

    import xarray
    from rich.console import Console

    from specdiag.schema import Analyzer

_GAP = 2
_SHOWN_LABELS = 60


def print_result(
    dataset: xarray.Dataset,
    analyzer: Analyzer | None,
    console: Console,
    *,
    path: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Print one result; `analyzer` None (not installed here) leaves its own table out.

    Legible from 60 columns up: a table that is too wide continues below with its first column repeated.
    Colour and lines are drawn on a terminal only.
    """
    facts = provenance(dataset)
    _say(console, *_header(facts))
    if analyzer is not None and analyzer.table is not None:
        titles, rows = analyzer.table(dataset)
        print_table(console, titles, rows)
    _print_metrics(console, facts, analyzer)
    remarks = _remarks(dataset, facts)
    if remarks:
        console.print()
    _say(console, *remarks, style="yellow")
    sentence = facts.get("sentence")
    if sentence:
        console.print()
        _say(console, str(sentence), style="bold")
    if path is not None or figure is not None:
        console.print()
    if path is not None:
        _say(console, f"results: {path}")
    if figure is not None:
        _say(console, f"figure:  {figure}")


def print_table(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts; numbers to the right. Columns that do not fit go below, the first one repeated."""
    if not rows:
        return
    for columns in _blocks(_widths(titles, rows), console.width):
        console.print()
        _print_block(
            console, [titles[column] for column in columns], [[row[c] for c in columns] for row in rows]
        )


def _print_block(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
        show_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    for column, title in enumerate(titles):
        numeric = column > 0 and all(_is_number(row[column]) for row in rows)
        table.add_column(Text(title), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    # no blanks at the ends of lines in logs and files
    for line in capture.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)


def format_number(value: float | int | None, error: float | None = None) -> str:
    """A number with sensible digits: four significant, or up to the second digit of its error.

    `format_number(12.3456, 0.123)` is `12.35 ± 0.12`; None is a dash. Very large and very small numbers get
    a power of ten, shared by value and error. An error that is None or not finite is left out.
    """
    if value is None:
        return "-"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if error is None or not math.isfinite(error):
        return _significant(value, 4)
    if error == 0:
        return f"{_significant(value, 4)} ± 0"
    if abs(error) < 1e-6 * abs(value):
        return f"{_significant(value, 7)} ± {error:.1g}"
    largest = max(abs(value), abs(error))
    power = math.floor(math.log10(largest))
    scale = power if power >= 6 or power < -4 else 0
    value, error = value / 10.0**scale, error / 10.0**scale
    digits = max(0, 1 - math.floor(math.log10(abs(error))))
    # adding zero turns -0.0 into 0.0
    text = f"{round(value, digits) + 0.0:.{digits}f} ± {error:.{digits}f}"
    return f"({text})e{scale:+03d}" if scale else text


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if power >= 6 or power < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - power)}f}"


def _header(facts: Mapping[str, Any]) -> list[str]:
    checkpoint, data, settings = (facts.get(key) or {} for key in ("checkpoint", "data", "settings"))
    title = f"{facts.get('analyzer', '?')}: {checkpoint.get('name') or checkpoint.get('path') or '?'}"
    if checkpoint.get("architecture"):
        title += f" ({checkpoint['architecture']})"
    parts = []
    if data.get("spec"):
        count = f"{data.get('samples')} samples"
        if data.get("total"):
            count = f"{data.get('samples')} of {data['total']} samples"
        parts.append(f"{data['spec']} {data.get('split', '')}".strip() + f", {count}")
    parts += [f"{key} {settings[key]}" for key in ("seed", "dtype") if settings.get(key) is not None]
    if facts.get("device"):
        parts.append(f"on {facts['device']}")
    options = [
        f"{key}={_plain(value)}"
        for key, value in (facts.get("options") or {}).items()
        if value not in (None, [], "")
    ]
    lines = [title, ", ".join(parts), " ".join(options)]
    return [line for line in lines if line]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        own = ", ".join(
            f"{key} {_plain(entry)}" for key, entry in value.items() if key != "name" and entry is not None
        )
        return f"{value.get('name', '')} ({own})" if own else str(value.get("name", ""))
    if isinstance(value, list):
        return ",".join(_plain(entry) for entry in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_metrics(console: Console, facts: Mapping[str, Any], analyzer: Analyzer | None) -> None:
    metrics: Mapping[str, Mapping[str, Any]] = facts.get("metrics") or {}
    if not metrics:
        return
    rows = [_metric_row(name, metric) for name, metric in metrics.items()]
    titles = ["metric", "value ± error", "95 % interval", "unit", "better"]
    keep = [column for column in range(len(titles)) if column == 0 or any(row[column] for row in rows)]
    titles, rows = [titles[column] for column in keep], [[row[column] for column in keep] for row in rows]
    if sum(_widths(titles, rows)) + _GAP * (len(titles) - 1) > console.width:
        titles, rows = ["metric", "value ± error, 95 % interval"], [_tall(*item) for item in metrics.items()]
    print_table(
        console,
        [_encodable(console, title) for title in titles],
        [[_encodable(console, cell) for cell in row] for row in rows],
    )
    if analyzer is None or analyzer.table is None:
        _print_labelled(console, metrics)


def _metric_row(name: str, metric: Mapping[str, Any]) -> list[str]:
    better = str(metric.get("better") or "")
    unit = str(metric.get("unit") or "")
    return [name, _value(metric), _interval(metric), unit, "" if better == "neither" else better]


def _tall(name: str, metric: Mapping[str, Any]) -> list[str]:
    """A metric in two columns, for where the five do not fit."""
    _, value, interval, unit, better = _metric_row(name, metric)
    rest = [part for part in (interval, f"{better} is better" if better else "") if part]
    return [
        name,
        "\n".join(
            part for part in (f"{value} {'' if unit == '1' else unit}".strip(), ", ".join(rest)) if part
        ),
    ]


def _print_labelled(console: Console, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, metric in metrics.items():
        if isinstance(metric.get("value"), list):
            groups.setdefault((*metric.get("dims", []), *metric.get("labels", [])), []).append(name)
    for names in groups.values():
        first = metrics[names[0]]
        labels = [str(label) for label in first.get("labels", [])]
        rows = [
            [label, *[format_number(metrics[name]["value"][row]) for name in names]]
            for row, label in enumerate(labels[:_SHOWN_LABELS])
        ]
        print_table(console, ["/".join(first.get("dims", ["layer"])), *names], rows)
        if len(labels) > _SHOWN_LABELS:
            _say(console, f"and {len(labels) - _SHOWN_LABELS} more")


def _interval(metric: Mapping[str, Any]) -> str:
    low, high = metric.get("low"), metric.get("high")
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)):
        return ""
    return f"{format_number(low)} to {format_number(high)}"


def _value(metric: Mapping[str, Any]) -> str:
    if not isinstance(metric.get("value"), list):
        return format_number(metric.get("value"), metric.get("error"))
    values = [value for value in metric["value"] if value is not None and math.isfinite(value)]
    bad = len(metric["value"]) - len(values)
    kind = "/".join(metric.get("dims", [])) or "values"
    text = f"{format_number(min(values))} to {format_number(max(values))}" if values else "nan"
    return f"{text} (per {kind})" + (f", {bad} not finite" if bad else "")


def _remarks(dataset: xarray.Dataset, facts: Mapping[str, Any]) -> list[str]:
    warnings: list[Mapping[str, Any]] = facts.get("warnings") or []
    lines = [f"warning {warning['id']}: {warning['text']}" for warning in warnings]
    said = " ".join(lines)
    if "near_kink" in dataset and "near_kink" not in said:
        count = int((dataset["near_kink"] > 0).sum())
        if count:
            of = dataset["near_kink"].size
            lines.append(
                f"note: {count} of {of} samples are within rounding of an activation boundary (near_kink)."
            )
    if "left out" not in said:
        lines += _left_out(facts.get("metrics") or {})
    return lines + [f"note: {note}" for note in facts.get("notes") or []]


def _left_out(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, metric in metrics.items():
        excluded = metric.get("excluded") or 0
        count = max(excluded) if isinstance(excluded, list) else excluded
        if count:
            named = ", ".join(str(sample) for sample in metric.get("excluded_samples") or [])
            lines.append(
                f"note: {count} non-finite values are left out of {name}"
                + (f" (sample {named})." if named else ".")
            )
    return lines


def _say(console: Console, *lines: str, style: str = "") -> None:
    for line in lines:
        # soft_wrap keeps paths whole when the output goes to a file
        console.print(Text(_encodable(console, line), style=style), soft_wrap=not console.is_terminal)


def _encodable(console: Console, text: str) -> str:
    return text if console.encoding.lower().startswith("utf") else text.replace("±", "+-")


def _is_number(text: str) -> bool:
    if "\n" in text:
        return False
    return not text or text[0].isdigit() or text[0] in "-+.(" or text in ("nan", "inf")


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Natural width of each column in cells; a cell may have several lines."""
    columns = [[title, *(row[column] for row in rows)] for column, title in enumerate(titles)]
    return [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]


def _blocks(widths: Sequence[int], available: int) -> list[list[int]]:
    """Columns in groups that fit the width, each starting with column 0."""
    blocks, used = [[0]], widths[0] + _GAP
    for column in range(1, len(widths)):
        need = widths[column] + _GAP
        if used + need > available and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0] + _GAP
        blocks[-1].append(column)
        used += need
    return blocks
