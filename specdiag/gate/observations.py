"""Numbers to judge, out of stored results: each with the samples it rests on and the settings that made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.gate.alone import values_alone
from specdiag.journal import differences
from specdiag.schema import Analyzer, MetricSpec, Reduce
from specdiag.store import provenance

if TYPE_CHECKING:
    import xarray

# settings that name the samples, and settings that only move the last digits
_SAMPLES = ("data", "seed")
_MACHINE = ("chunk", "device", "processor", "threads", "memory_format", "versions")

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where numbers come from: one checkpoint through one analyzer.

    checkpoint: name of the results file, its role; settings: as stored; splits, index: of the samples (N,), or None
    where the analyzer has none; file: of the results.
    """

    checkpoint: str
    analyzer: str
    settings: Mapping[str, Any]
    splits: tuple[str, ...] | None = None
    index: tuple[int, ...] | None = None
    file: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """One number. `label` is the layer (or other label) of a metric with several values.

    values: the values over samples (N,) that it aggregates by `reduce`, from the stored array `array`; None where it is
    no aggregate over samples. excluded: how many of them are NaN or infinite though the analyzer has no meaning for
    that.
    """

    origin: Origin
    metric: str
    label: str | None
    value: float
    error: float
    unit: str
    better: str
    n: int | None = None
    excluded: int = 0
    reduce: Reduce | None = None
    array: str | None = None
    values: Values | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """What tells it from all others, here and in a baseline."""
        return self.origin.checkpoint, self.origin.analyzer, self.metric, self.label

    @property
    def name(self) -> str:
        """`spectrum.sigma_max_mean`, with the label in brackets where there is one."""
        label = "" if self.label is None else f"[{self.label}]"
        return f"{self.origin.analyzer}.{self.metric}{label}"


def observe(
    checkpoint: str,
    dataset: xarray.Dataset,
    analyzer: Analyzer | None,
    file: str = "",
    compared: Callable[[str], bool] = lambda metric: False,
) -> list[Observation]:
    """All metrics of one stored result.

    analyzer: its declaration, which says what each metric aggregates; None (not installed here) leaves values and
    standard errors only. compared: whether a metric is compared with a baseline, so that its values over samples are
    worth looking for where no array holds them.
    """
    facts = provenance(dataset)
    origin = Origin(
        checkpoint, str(facts.get("analyzer")), facts.get("settings") or {}, *_samples(dataset, facts), file
    )
    found = []
    metrics = facts.get("metrics") or {}
    alone = _alone(dataset, analyzer, [name for name in metrics if compared(name)])
    for name, stored in metrics.items():
        spec = analyzer.metrics.get(name) if analyzer is not None else None
        rows = _rows(dataset, spec)
        if rows is None and name in alone:
            rows, spec = alone[name], MetricSpec("", "neither", "", f"{name} (alone)", "mean")
        for position, numbers in _entries(stored):
            values = None if rows is None else rows[position or 0]
            excluded = int(numbers.get("excluded") or 0)
            if spec is not None and analyzer is not None and _may_be_infinite(analyzer, spec):
                excluded = 0 if values is None else int(np.isnan(values).sum())
            found.append(
                Observation(
                    origin,
                    name,
                    None if position is None else str(stored["labels"][position]),
                    _number(numbers.get("value")),
                    _number(numbers.get("error")),
                    str(stored.get("unit", "")),
                    str(stored.get("better", "neither")),
                    numbers.get("n"),
                    excluded,
                    None if spec is None or values is None else spec.reduce,
                    None if spec is None or values is None else spec.of,
                    values,
                )
            )
    return found


def _alone(dataset: xarray.Dataset, analyzer: Analyzer | None, wanted: Sequence[str]) -> dict[str, Values]:
    if analyzer is None:
        return {}
    if not any(_rows(dataset, analyzer.metrics.get(name)) is None for name in wanted):
        return {}
    return {name: rows for name, rows in values_alone(analyzer, dataset).items() if name in wanted}


@dataclass(frozen=True, slots=True)
class Contrast:
    """What differs between the settings of two results: what forbids a comparison, the samples, the machine."""

    forbidding: tuple[str, ...]
    samples: tuple[str, ...]
    machine: tuple[str, ...]


def contrast(old: Mapping[str, Any], new: Mapping[str, Any]) -> Contrast:
    """Compare two settings; the weights themselves (their SHA-256) are what a comparison is about."""

    def part(settings: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        return {key: settings[key] for key in keys if key in settings}

    def rest(settings: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in settings.items() if key not in _SAMPLES + _MACHINE}
        checkpoint = dict(kept.get("checkpoint") or {})
        checkpoint.pop("sha256", None)
        return {**kept, "checkpoint": checkpoint}

    return Contrast(
        tuple(differences(rest(old), rest(new))),
        tuple(differences(part(old, _SAMPLES), part(new, _SAMPLES))),
        tuple(differences(part(old, _MACHINE), part(new, _MACHINE))),
    )


def _samples(
    dataset: xarray.Dataset, facts: Mapping[str, Any]
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    if "sample" not in dataset.sizes:
        return None, None
    own = "index" in dataset.coords and dataset["index"].dims == ("sample",)
    index = dataset["index" if own else "sample"].values
    if "split" in dataset.coords and dataset["split"].dims == ("sample",):
        splits = tuple(str(entry) for entry in dataset["split"].values)
    else:
        splits = (str((facts.get("data") or {}).get("split", "")),) * len(index)
    return splits, tuple(int(entry) for entry in index)


def _rows(dataset: xarray.Dataset, spec: MetricSpec | None) -> Values | None:
    """Values over samples, (labels, N), of a metric that aggregates over samples."""
    if spec is None or spec.of is None or spec.reduce is None or spec.of not in dataset:
        return None
    array = dataset[spec.of]
    over = [str(dim) for dim in array.dims if dim not in spec.dims]
    if over != ["sample"]:
        return None
    rows: Values = array.transpose(*spec.dims, "sample").values.astype(np.float64)
    return rows.reshape(-1, rows.shape[-1])


def _entries(stored: Mapping[str, Any]) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
    """(position, numbers) of each value of a metric; position None for a single number."""
    if not isinstance(stored.get("value"), list):
        yield None, stored
        return
    for position in range(len(stored["value"])):
        yield (
            position,
            {
                key: entry[position] if isinstance(entry, list) and len(entry) > position else entry
                for key, entry in stored.items()
                if key in ("value", "error", "n", "excluded")
            },
        )


def _may_be_infinite(analyzer: Analyzer, spec: MetricSpec) -> bool:
    array = analyzer.arrays.get(spec.of or "")
    return array is not None and array.may_be_infinite


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
