"""Stored arrays to gate-able numbers, each with its error and interval. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.sampling import Draws
from specdiag.schema import Analyzer, MetricSpec, Reduce

if TYPE_CHECKING:
    import xarray

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 1_000_000
_NAMED = 10
_NORMAL_975 = 1.959963984540054

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Metric:
    """An aggregate over samples: value, standard error, 95 % interval, and how many samples it rests on.

    `n` finite samples were used; `excluded` were NaN or infinite and were left out.
    """

    value: float
    error: float
    low: float
    high: float
    n: int
    excluded: int = 0


_REDUCE: dict[Reduce, Callable[[Values], Values]] = {
    "mean": lambda rows: rows.mean(axis=-1),
    "median": lambda rows: np.median(rows, axis=-1),
    "std": lambda rows: rows.std(axis=-1, ddof=1) if rows.shape[-1] > 1 else np.full(rows.shape[:-1], np.nan),
    "p05": lambda rows: np.percentile(rows, 5, axis=-1),
    "p95": lambda rows: np.percentile(rows, 95, axis=-1),
    "min": lambda rows: rows.min(axis=-1),
    "max": lambda rows: rows.max(axis=-1),
    "share": lambda rows: (rows != 0).mean(axis=-1),
}


def reduce_rows(rows: Values, reduce: Reduce) -> Values:
    """The aggregate over the last axis of finite `rows` (..., samples)."""
    return _REDUCE[reduce](rows)


def aggregate(values: Any, reduce: Reduce, *, seed: int = 0) -> Metric:
    """One number from the values (samples,) of an array, with its uncertainty.

    The standard error of `mean` is s / sqrt(n) (s with n - 1) and that of `share` (of values that are not
    zero) is its counterpart for zeros and ones; that of all others is the spread of 1,000 bootstrap
    resamples, seeded. The interval is the 2.5 to 97.5 percentile of the same resamples. For `min` and `max`
    the bootstrap is a description, not a confidence statement. NaN and infinite values are left out and
    counted. No finite value: NaN with n = 0; a single one has no error (NaN).
    """
    data = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = data[np.isfinite(data)]
    n, excluded = finite.size, data.size - finite.size
    if n == 0:
        return Metric(math.nan, math.nan, math.nan, math.nan, 0, excluded)
    value = float(_REDUCE[reduce](finite))
    if n == 1:
        return Metric(value, math.nan, math.nan, math.nan, 1, excluded)
    replicates = _bootstrap(finite, reduce, seed)
    if reduce in ("mean", "share"):
        terms = finite if reduce == "mean" else (finite != 0).astype(np.float64)
        error = float(terms.std(ddof=1) / math.sqrt(n))
    else:
        error = float(replicates.std(ddof=1))
    low, high = np.percentile(replicates, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Metric(value, error, float(low), float(high), n, excluded)


def summarise(analyzer: Analyzer, dataset: xarray.Dataset, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """All metrics of an analyzer, in the order declared, as provenance holds them.

    Each is {value, error, low, high, n, excluded, unit, better, doc}, with `excluded_samples` (the first ten
    of them, by coordinate) where there are non-finite values; a metric with dimensions has lists
    instead of numbers, and `dims` and `labels`. `of` with `reduce` aggregates an array over `sample` (or,
    where the array has no samples, over what it has, without error); `of` alone takes the array's values;
    the rest comes from `analyzer.summarise`. A metric whose array is absent, or that `summarise` does not
    return, is left out. Raises ValueError when the declaration does not fit the arrays.
    """
    own = analyzer.summarise(dataset) if analyzer.summarise is not None else {}
    unknown = [name for name in own if name not in analyzer.metrics]
    if unknown:
        raise ValueError(f"{analyzer.name}.summarise returns '{unknown[0]}', which it does not declare")
    result: dict[str, dict[str, Any]] = {}
    for name, spec in analyzer.metrics.items():
        if name in own:
            numbers = _given(*own[name], n=dataset.sizes.get("sample"))
        elif spec.of is not None and spec.of in dataset:
            numbers = _aggregated(name, spec, dataset[spec.of], seed)
        else:
            continue
        if spec.dims:
            numbers |= {"dims": list(spec.dims), "labels": _labels(dataset, spec.dims)}
        result[name] = numbers | {"unit": spec.unit, "better": spec.better, "doc": spec.doc}
    return result


def _bootstrap(values: Values, reduce: Reduce, seed: int) -> Values:
    n = values.size
    generator = Draws(seed).generator("bootstrap")
    # blocks bound the memory; their size depends on n alone, so that the draws do too
    block = max(1, _BLOCK // n)
    parts = []
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        parts.append(_REDUCE[reduce](values[generator.integers(0, n, size=(rows, n))]))
    return np.concatenate(parts)


def _aggregated(name: str, spec: MetricSpec, array: xarray.DataArray, seed: int) -> dict[str, Any]:
    over = [str(dim) for dim in array.dims if dim not in spec.dims]
    missing = [dim for dim in spec.dims if dim not in array.dims]
    if missing:
        raise ValueError(f"metric '{name}': array '{spec.of}' has no dimension '{missing[0]}'")
    if spec.reduce is None:
        if over:
            raise ValueError(f"metric '{name}': array '{spec.of}' has a dimension '{over[0]}' and no reduce")
        values = array.transpose(*spec.dims).values.astype(np.float64).reshape(-1)
        return _plain(spec, [Metric(float(value), math.nan, math.nan, math.nan, 1) for value in values])
    if len(over) != 1:
        raise ValueError(f"metric '{name}': array '{spec.of}' needs one dimension to reduce, has {over}")
    rows = array.transpose(*spec.dims, over[0]).values.astype(np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    metrics = [aggregate(row, spec.reduce, seed=seed) for row in rows]
    if over[0] != "sample":
        # layers, ranks and the like are no random sample: a bootstrap over them means nothing
        metrics = [Metric(m.value, math.nan, math.nan, math.nan, m.n, m.excluded) for m in metrics]
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=0))
    named = {"excluded_samples": array[over[0]].values[broken[:_NAMED]].tolist()} if broken.size else {}
    return _plain(spec, metrics) | named


def _plain(spec: MetricSpec, metrics: list[Metric]) -> dict[str, Any]:
    keys = ("value", "error", "low", "high", "n", "excluded")
    if spec.dims:
        return {key: [getattr(metric, key) for metric in metrics] for key in keys}
    return {key: getattr(metrics[0], key) for key in keys}


def _given(value: Any, error: Any, n: int | None) -> dict[str, Any]:
    values, errors = np.broadcast_arrays(np.asarray(value, np.float64), np.asarray(error, np.float64))
    half = _NORMAL_975 * errors
    with np.errstate(invalid="ignore"):
        numbers = {"value": values, "error": errors, "low": values - half, "high": values + half}
    return {key: array.tolist() for key, array in numbers.items()} | {"n": n, "excluded": 0}


def _labels(dataset: xarray.Dataset, dims: tuple[str, ...]) -> list[str]:
    parts = [[str(label) for label in dataset[dim].values] for dim in dims]
    grid = np.stack(np.meshgrid(*[np.array(part, dtype=object) for part in parts], indexing="ij"), axis=-1)
    return ["/".join(row) for row in grid.reshape(-1, len(dims))]
