"""The committed baseline: a JSON file with values, the values over samples behind them, and the settings.

`{"format": "specdiag-baseline", "version": 1, "checkpoints": {NAME: {ANALYZER: {settings, settings_hash, splits,
index, arrays, metrics}}}}`. Lists of numbers are on one line each, so that a diff shows what changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.errors import NothingAnalysed, ResultsError
from specdiag.gate.observations import Observation, Origin
from specdiag.store import json_safe, settings_hash

FORMAT = "specdiag-baseline"
# 1: values over samples in float32 where they were computed so
VERSION = 1

Key = tuple[str, str, str, str | None]


def write_baseline(path: Path, observations: Sequence[Observation]) -> None:
    """Write the observations as a baseline; the file appears only when whole. Equal contents give equal bytes."""
    if not observations:
        raise NothingAnalysed(f"There is nothing to write to {path}.", "No stored number matches the gates.")
    checkpoints: dict[str, dict[str, Any]] = {}
    for entry in sorted(observations, key=lambda entry: tuple(part or "" for part in entry.key)):
        group = checkpoints.setdefault(entry.origin.checkpoint, {}).setdefault(
            entry.origin.analyzer, _group(entry.origin)
        )
        if entry.values is not None:
            group["arrays"][_array(entry)] = _pack(entry.values)
        group["metrics"].setdefault(entry.metric, []).append(
            {
                "label": entry.label,
                "value": json_safe(entry.value),
                "error": json_safe(entry.error),
                "n": entry.n,
                "excluded": entry.excluded,
                "unit": entry.unit,
                "better": entry.better,
                "reduce": entry.reduce,
                "array": entry.array,
            }
        )
    text = _dumps({"format": FORMAT, "version": VERSION, "checkpoints": checkpoints}) + "\n"
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResultsError(f"Cannot write the baseline {path}: {error.strerror or error}.") from error


def read_baseline(path: Path) -> dict[Key, Observation]:
    """The numbers of a baseline by checkpoint, analyzer, metric and label; ResultsError where it is missing or damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"There is no baseline {path}.", "Make it with: specdiag gate RESULTS --write-baseline"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"The baseline {path} cannot be read: {error}.", _AGAIN) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultsError(f"{path} is no baseline of specdiag.", _AGAIN)
    if not isinstance(content.get("version"), int) or content["version"] > VERSION:
        raise ResultsError(
            f"{path} was written by a newer specdiag.", "Upgrade with: pip install --upgrade specdiag"
        )
    try:
        found = [
            entry
            for checkpoint, analyzers in content["checkpoints"].items()
            for analyzer, group in analyzers.items()
            for entry in _read_group(checkpoint, analyzer, group)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(
            f"The baseline {path} is damaged: {type(error).__name__}: {error}.", _AGAIN
        ) from None
    return {entry.key: entry for entry in found}


_AGAIN = "Make it again with --write-baseline."


def _group(origin: Origin) -> dict[str, Any]:
    settings = json_safe(origin.settings)
    split = origin.splits
    return {
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "splits": split[0] if split and len(set(split)) == 1 else None if split is None else list(split),
        "index": None if origin.index is None else list(origin.index),
        "arrays": {},
        "metrics": {},
    }


def _read_group(checkpoint: str, analyzer: str, group: Mapping[str, Any]) -> list[Observation]:
    settings, index = group["settings"], group["index"]
    if settings_hash(settings) != group["settings_hash"]:
        raise ValueError(f"the settings of {analyzer} for {checkpoint} were edited")
    splits = group["splits"]
    if isinstance(splits, str):
        splits = [splits] * len(index)
    origin = Origin(
        checkpoint,
        analyzer,
        settings,
        None if splits is None else tuple(splits),
        None if index is None else tuple(int(entry) for entry in index),
    )
    arrays = {name: _unpack(packed) for name, packed in group["arrays"].items()}
    found = []
    for metric, entries in group["metrics"].items():
        for numbers in entries:
            entry = Observation(
                origin,
                metric,
                numbers["label"],
                float(numbers["value"]),
                float(numbers["error"]),
                str(numbers["unit"]),
                str(numbers["better"]),
                numbers["n"],
                int(numbers["excluded"]),
                numbers["reduce"],
                numbers["array"],
            )
            values = arrays[_array(entry)] if entry.array is not None else None
            found.append(replace(entry, values=values))
    return found


def _array(entry: Observation) -> str:
    return f"{entry.array}" if entry.label is None else f"{entry.array}[{entry.label}]"


def _pack(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Values in the shortest digits that give them back; None for NaN."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if np.array_equal(narrow.astype(np.float64), values, equal_nan=True):
        return {"dtype": "float32", "values": [_digits(value) for value in narrow]}
    return {"dtype": "float64", "values": [_digits(value) for value in values]}


def _digits(value: Any) -> float | str | None:
    if np.isnan(value):
        return None
    return float(str(value)) if np.isfinite(value) else str(value)


def _unpack(packed: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = [np.nan if value is None else float(value) for value in packed["values"]]
    return np.array(values, dtype=packed["dtype"]).astype(np.float64)


def _dumps(value: Any, indent: str = "") -> str:
    """JSON with sorted keys, mappings indented and lists on one line."""
    if isinstance(value, Mapping) and value:
        inner = indent + " "
        lines = (
            f"{inner}{json.dumps(str(key))}: {_dumps(entry, inner)}" for key, entry in sorted(value.items())
        )
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        inner = indent + " "
        lines = (f"{inner}{json.dumps(entry, sort_keys=True, allow_nan=False)}" for entry in value)
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    return json.dumps(value, sort_keys=True, allow_nan=False)
