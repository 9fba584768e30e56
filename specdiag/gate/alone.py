"""Values over samples of metrics that an analyzer computes by itself, where they are plain means in truth.

A number such as robust accuracy comes out of `summarise` as a mean over samples, without the array behind it. Its value
on one sample alone is that sample's share of it; that the means of these agree with the number on all samples and on
half of them is what shows that it is a mean.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.schema import Analyzer

if TYPE_CHECKING:
    import xarray

# seconds that the whole may take; a comparison without it is still sound, only wider
PATIENCE = 30.0
_AGREE = 1e-6

Values = np.ndarray[Any, np.dtype[np.float64]]


def values_alone(analyzer: Analyzer, dataset: xarray.Dataset) -> dict[str, Values]:
    """Per metric of `summarise` that is a mean over samples: its values (labels, N), labels 1 for a single number.

    Empty where the analyzer has no `summarise`, where there are fewer than four samples, or where it would take longer
    than PATIENCE.
    """
    count = dataset.sizes.get("sample", 0)
    if analyzer.summarise is None or count < 4:
        return {}
    start = time.monotonic()
    rows: list[Mapping[str, Values]] = []
    for place in range(count):
        rows.append(_summarised(analyzer, dataset, [place]))
        if time.monotonic() - start > PATIENCE:
            return {}
    every, half = list(range(count)), list(range(0, count, 2))
    whole, part = _summarised(analyzer, dataset, every), _summarised(analyzer, dataset, half)
    found = {}
    for name, value in whole.items():
        if any(name not in row or row[name].shape != value.shape for row in rows) or name not in part:
            continue
        values = np.stack([row[name] for row in rows], axis=-1)
        if _is_mean(values, value) and _is_mean(values[:, half], part[name]):
            found[name] = values
    return found


def _is_mean(values: Values, value: Values) -> bool:
    if not np.isfinite(values).all() or not np.isfinite(value).all():
        return False
    scale = np.abs(values).max(axis=-1)
    return bool((np.abs(values.mean(axis=-1) - value) <= _AGREE * scale + 1e-12).all())


def _summarised(analyzer: Analyzer, dataset: xarray.Dataset, places: list[int]) -> dict[str, Values]:
    if analyzer.summarise is None:
        return {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = analyzer.summarise(dataset.isel(sample=places))
        except (ValueError, IndexError, KeyError, ZeroDivisionError, TypeError):
            # not every number exists for a single sample
            return {}
    return {name: np.asarray(value, dtype=np.float64).reshape(-1) for name, (value, _) in found.items()}
