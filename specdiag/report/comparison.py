"""Stored results side by side: metrics with paired intervals, samples against samples, singular subspaces. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.gate import statistics
from specdiag.gate.observations import Contrast, Observation, contrast, observe
from specdiag.report.content import Stored
from specdiag.schema import Analyzer

if TYPE_CHECKING:
    import xarray

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of another file beside the first one's; the interval is of other minus first, NaN where there is none."""

    name: str
    first: Observation
    other: Observation
    change: float
    low: float
    high: float
    pairing: str

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out zero."""
        return bool(self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Angles:
    """Principal angles between the spans of the stored singular vectors, sample by sample.

    degrees: (samples, k), rising; space: `input` or `output`; expected: mean squared cosine of two random subspaces.
    """

    array: str
    space: str
    degrees: Values
    overlap: float
    expected: float


def compared(first: Stored, other: Stored, analyzer: Analyzer | None) -> tuple[list[Difference], Contrast]:
    """All metrics that both files have, and what differs in the settings behind them."""
    before, after = (
        {
            (entry.metric, entry.label): entry
            for entry in observe(item.name, item.dataset, analyzer, compared=lambda name: True)
        }
        for item in (first, other)
    )
    shared = [key for key in before if key in after]
    found = contrast(_settings(before), _settings(after))
    return [_difference(before[key], after[key], found) for key in shared], found


def _settings(numbers: Mapping[Any, Observation]) -> Mapping[str, Any]:
    return next(iter(numbers.values())).origin.settings if numbers else {}


def _difference(first: Observation, other: Observation, found: Contrast) -> Difference:
    change = other.value - first.value
    low = high = float("nan")
    pairing = ""
    if first.values is not None and other.values is not None and first.reduce is not None:
        same = (
            not found.samples
            and first.origin.index == other.origin.index
            and first.origin.splits == other.origin.splits
        )
        old, new = first.values, other.values
        if same:
            both = np.isfinite(old) & np.isfinite(new)
            old, new = old[both], new[both]
        else:
            old, new = old[np.isfinite(old)], new[np.isfinite(new)]
        if min(len(old), len(new)) >= 2:
            compute = statistics.of_paired_change if same else statistics.of_unpaired_change
            interval = compute(old, new, first.reduce, _TAIL, relative=False)
            low, high, pairing = interval.low, interval.high, "paired" if same else "unpaired"
    elif np.isfinite(first.error) or np.isfinite(other.error):
        interval = statistics.by_errors(
            first.value, other.value, first.error, other.error, _TAIL, relative=False
        )
        low, high, pairing = interval.low, interval.high, "unpaired"
    return Difference(first.name, first, other, change, low, high, pairing)


def sample_pairs(
    first: xarray.Dataset, other: xarray.Dataset, analyzer: Analyzer
) -> dict[str, tuple[Values, Values]]:
    """Values over the samples that both files hold, of every array of one number per sample that a metric is made of."""
    names = dict.fromkeys(spec.of for spec in analyzer.metrics.values() if spec.of is not None)
    rows = _common(first, other)
    if rows is None:
        return {}
    mine, theirs = rows
    found = {}
    for name in names:
        if name in first and name in other and first[name].dims == other[name].dims == ("sample",):
            found[name] = (
                first[name].values[mine].astype(np.float64),
                other[name].values[theirs].astype(np.float64),
            )
    return found


def principal_angles(first: xarray.Dataset, other: xarray.Dataset) -> list[Angles]:
    """For every array (sample, vector, X) that both files hold: the angles between the spans of its vectors."""
    rows = _common(first, other)
    found = []
    for name in first.data_vars:
        dims = first[name].dims
        if rows is None or name not in other or dims[:2] != ("sample", "vector") or len(dims) != 3:
            continue
        a, b = first[name].values[rows[0]], other[name].values[rows[1]]
        if a.shape[2] != b.shape[2] or not len(a):
            continue
        cosines = np.linalg.svd(
            a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1), compute_uv=False
        )
        cosines = np.clip(cosines, 0, 1)
        found.append(
            Angles(
                str(name),
                str(dims[2]),
                np.degrees(np.arccos(cosines)),
                float((cosines**2).mean()),
                max(a.shape[1], b.shape[1]) / a.shape[2],
            )
        )
    return found


def _common(first: xarray.Dataset, other: xarray.Dataset) -> tuple[Any, Any] | None:
    """Places of the samples that are in both, by split and index; None where the analyzer has no samples."""
    if "sample" not in first.sizes or "sample" not in other.sizes:
        return None
    mine, theirs = _keys(first), _keys(other)
    places = {key: place for place, key in enumerate(theirs)}
    pairs = [(place, places[key]) for place, key in enumerate(mine) if key in places]
    return np.array([a for a, _ in pairs], int), np.array([b for _, b in pairs], int)


def _keys(dataset: xarray.Dataset) -> Sequence[Any]:
    own = "index" in dataset.coords and dataset["index"].dims == ("sample",)
    index = [int(entry) for entry in dataset["index" if own else "sample"].values]
    if "split" in dataset.coords and dataset["split"].dims == ("sample",):
        return list(zip(map(str, dataset["split"].values), index, strict=True))
    return index


def scatter_figure(
    analyzer: str, labels: tuple[str, str], pairs: Mapping[str, tuple[Values, Values]], figure: Any
) -> None:
    """One panel per array: each sample of the first file against the same sample of the other, with the diagonal."""
    from specdiag.figures import colour, log_axis

    columns = min(3, len(pairs))
    grid = figure.subplots(-(-len(pairs) // columns), columns, squeeze=False)
    for ax, (name, (first, other)) in zip(grid.flat, pairs.items(), strict=False):
        kept = np.isfinite(first) & np.isfinite(other)
        a, b = first[kept], other[kept]
        ax.scatter(a, b, s=10, color=colour(0), alpha=0.6, linewidths=0)
        if len(a):
            ends = [min(a.min(), b.min()), max(a.max(), b.max())]
            ax.plot(ends, ends, color="#444444", lw=1, zorder=1)
            if ends[0] > 0 and ends[1] > 20 * ends[0]:
                log_axis(ax, "x")
                log_axis(ax, "y")
        ax.set_xlabel(f"{name}, {labels[0]}")
        ax.set_ylabel(f"{name}, {labels[1]}")
    for ax in grid.flat[len(pairs) :]:
        ax.set_visible(False)
    figure.suptitle(f"{analyzer}: sample by sample")
