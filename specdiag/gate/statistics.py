"""Intervals by bootstrap: of a value, and of a change on the same or on other samples.

Percentile intervals from seeded resamples of the samples. A rule that matches several metrics divides its level
among them (Bonferroni); far in the tails, where few resamples lie, the wider of the percentile and the normal
interval is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from specdiag.metrics import reduce_rows
from specdiag.sampling import Draws
from specdiag.schema import Reduce

RESAMPLES = 10_000
LEVEL = 0.98
# below this many resamples beyond the percentile its own noise would matter
_ENOUGH = 20
_BLOCK = 500_000

Values = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval that holds it at the level asked for; both ends equal when it is exact."""

    estimate: float
    low: float
    high: float


def of_value(values: Values, reduce: Reduce, tail: float, seed: int = 0) -> Interval:
    """Interval of an aggregate over samples (N,); `tail` is the error probability on each side."""
    estimate = float(reduce_rows(values, reduce))
    return _interval(estimate, _resampled(values, reduce, seed, "value"), tail)


def of_paired_change(
    old: Values, new: Values, reduce: Reduce, tail: float, *, relative: bool, seed: int = 0
) -> Interval:
    """Interval of new - old (or of new / old - 1) where row i of both, (N,), is the same sample.

    Both are resampled by the same indices, so that what a sample adds to both cancels.
    """
    change = _change(relative)
    estimate = change(reduce_rows(old, reduce), reduce_rows(new, reduce))
    parts = [
        change(reduce_rows(old[index], reduce), reduce_rows(new[index], reduce))
        for index in _indices(len(old), seed, "paired")
    ]
    return _interval(float(estimate), np.concatenate(parts), tail)


def of_unpaired_change(
    old: Values, new: Values, reduce: Reduce, tail: float, *, relative: bool, seed: int = 0
) -> Interval:
    """Interval of new - old (or of new / old - 1) where the samples (N,) and (M,) are other ones."""
    change = _change(relative)
    estimate = change(reduce_rows(old, reduce), reduce_rows(new, reduce))
    replicates = change(_resampled(old, reduce, seed, "old"), _resampled(new, reduce, seed, "new"))
    return _interval(float(estimate), replicates, tail)


def by_errors(
    old: float | None, new: float, old_error: float, new_error: float, tail: float, *, relative: bool
) -> Interval:
    """Normal interval from standard errors, for numbers that are no aggregate over samples.

    old is None for the value itself. An error that is NaN counts as 0: the number is exact.
    """
    known = [error for error in (old_error, new_error) if math.isfinite(error)]
    half = -NormalDist().inv_cdf(tail) * math.hypot(*known) if known else 0.0
    if old is None:
        return Interval(new, new - half, new + half)
    scale = abs(old) if relative else 1.0
    estimate = (new - old) / scale
    return Interval(estimate, estimate - half / scale, estimate + half / scale)


def _change(relative: bool) -> Callable[[Any, Any], Any]:
    def change(old: Any, new: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (new - old) / np.abs(old) if relative else new - old

    return change


def _resampled(values: Values, reduce: Reduce, seed: int, purpose: str) -> Values:
    return np.concatenate(
        [reduce_rows(values[index], reduce) for index in _indices(len(values), seed, purpose)]
    )


def _indices(n: int, seed: int, purpose: str) -> Iterator[Indices]:
    """Rows of n indices, RESAMPLES in all; blocks bound the memory and depend on n alone, so that draws do too."""
    generator = Draws(seed).generator(f"gate/{purpose}")
    block = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, block):
        yield generator.integers(0, n, size=(min(block, RESAMPLES - start), n))


def _interval(estimate: float, replicates: Values, tail: float) -> Interval:
    if not np.isfinite(replicates).all():
        return Interval(estimate, -math.inf, math.inf)
    low, high = (float(end) for end in np.quantile(replicates, [tail, 1 - tail]))
    if tail * len(replicates) < _ENOUGH:
        half = -NormalDist().inv_cdf(tail) * float(replicates.std())
        low, high = min(low, estimate - half), max(high, estimate + half)
    return Interval(estimate, low, high)
