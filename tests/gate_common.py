"""Numbers to judge, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdiag.gate.observations import Observation, Origin

SETTINGS: dict[str, Any] = {
    "analyzer": "spectrum",
    "analyzer_version": 1,
    "options": {"layer": "logits", "method": "autograd"},
    "checkpoint": {"sha256": "aa", "architecture": "cnn4", "space": "data"},
    "data": {"split": "test", "samples": 200, "sha256": "dd"},
    "seed": 0,
    "chunk": 64,
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "versions": {"torch": "2.12"},
}


def number(
    values: Any = None,
    *,
    value: float | None = None,
    error: float = float("nan"),
    checkpoint: str = "a",
    analyzer: str = "spectrum",
    metric: str = "sigma_max_mean",
    label: str | None = None,
    better: str = "lower",
    reduce: Any = "mean",
    excluded: int = 0,
    index: Any = None,
    settings: dict[str, Any] | None = None,
) -> Observation:
    """One observation: of values over samples, or a bare value."""
    if values is not None:
        values = np.asarray(values, dtype=np.float64)
        index = tuple(range(len(values))) if index is None else tuple(index)
        if value is None:
            value = float(np.nanmean(values)) if len(values) else float("nan")
    origin = Origin(
        checkpoint,
        analyzer,
        {**SETTINGS, "analyzer": analyzer, **(settings or {})},
        None if index is None else ("test",) * len(index),
        index,
    )
    assert value is not None
    return Observation(
        origin,
        metric,
        label,
        value,
        error,
        "output / input",
        better,
        None if values is None else len(values),
        excluded,
        None if values is None else reduce,
        None if values is None else "sigma_max",
        values,
    )


def population(count: int = 2000, seed: int = 7) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Positive, skewed values, as largest singular values are."""
    return np.exp(0.5 * np.random.default_rng(seed).standard_normal(count))
