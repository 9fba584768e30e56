"""Read access to what a reproduction trained and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.reproduce._plan import Plan, Scene
from specdiag.store import provenance, read_group

if TYPE_CHECKING:
    import xarray

Values = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Results:
    """All results of one paper in `folder`; chosen: constants by training; facts: `train` metadata by file stem."""

    folder: Path
    scene: Scene
    plan: Plan
    chosen: Mapping[str, float]
    facts: Mapping[str, Mapping[str, Any]]
    _read: dict[tuple[Path, str], Any] = field(default_factory=dict)

    def seeds(self, name: str) -> tuple[int, ...]:
        """Seeds of a training."""
        found = self.plan.training(name).seeds
        return self.scene.seeds if found is None else found

    def dataset(self, analyzer: str, name: str, seed: int, variant: str = "") -> xarray.Dataset:
        """The stored result of one analyzer for one checkpoint (or for `together`, with the analyzer's name as name)."""
        key = self.folder / variant / f"{name}-s{seed}.h5", analyzer
        if key not in self._read:
            self._read[key] = read_group(*key)
        found: xarray.Dataset = self._read[key]
        return found

    def arrays(self, analyzer: str, array: str, name: str, variant: str = "", **places: Any) -> list[Values]:
        """One array per seed, sample first; places: labels of other dimensions, such as attack="pgd-l2"."""
        found = []
        for seed in self.seeds(name):
            values = self.dataset(analyzer, name, seed, variant)[array]
            if "sample" in values.dims:
                values = values.transpose("sample", ...)
            for dim, label in places.items():
                at = values.coords[dim].values
                if isinstance(label, float):
                    values = values.isel({dim: int(np.abs(at.astype(float) - label).argmin())})
                else:
                    values = values.isel({dim: [str(entry) for entry in at].index(str(label))})
            found.append(np.asarray(values.values))
        return found

    def metric(
        self, analyzer: str, metric: str, name: str, variant: str = "", label: str | None = None
    ) -> list[float]:
        """One metric per seed; label: for one with dimensions, such as `pgd-l2/1.0`."""
        found = []
        for seed in self.seeds(name):
            entry = provenance(self.dataset(analyzer, name, seed, variant))["metrics"][metric]
            value = entry["value"] if label is None else entry["value"][entry["labels"].index(label)]
            found.append(float(value))
        return found

    def train(self, name: str) -> list[Mapping[str, Any]]:
        """Training facts per seed."""
        training = self.plan.training(name)
        return [self.facts[training.file(seed)] for seed in self.seeds(name)]

    def first(
        self, analyzer: str, names: Mapping[str, str] | Sequence[str], variant: str = ""
    ) -> dict[str, Any]:
        """The results of the first seed by label, as the analyzers' figures take them."""
        labels = names if isinstance(names, dict) else {str(name): str(name) for name in names}
        return {
            label: self.dataset(analyzer, name, self.seeds(name)[0], variant)
            for label, name in labels.items()
        }


def paired(*columns: list[Values]) -> list[tuple[Values, ...]]:
    """Per seed the arrays of several columns, as `estimate` takes them."""
    return list(zip(*columns, strict=True))
