"""Recompute a few stored samples with the stored settings: are the numbers reproduced, and to which precision?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from specdiag import plugins
from specdiag.batch.work import some
from specdiag.errors import CheckpointError, ResultsError
from specdiag.jobs import Common, prepare
from specdiag.journal import differences
from specdiag.loading.resolve import Wanted
from specdiag.loading.trusted import Trust
from specdiag.provenance import settings_of, settings_of_weights
from specdiag.runner import compute_chunk
from specdiag.schema import Analyzer, AttackSpec, build, fields
from specdiag.store import provenance, read_group
from specdiag.weights import WeightsTask, run_weights

# what two machines, or two versions of a library, may differ by; relative to the largest value of an array
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True, slots=True)
class Checked:
    """One array: equal bits, or the largest deviation relative to the largest stored value.

    kinks: samples that deviate by more than the tolerance and are marked as lying on a kink, where rounding decides;
    only where machine or versions are other ones.
    """

    array: str
    equal: bool
    deviation: float
    kinks: int = 0
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Verified:
    """One analyzer of a results file. changed: settings of this machine that differ from the stored ones."""

    analyzer: str
    status: Literal["reproduced", "differs", "skipped"]
    samples: int = 0
    arrays: tuple[Checked, ...] = ()
    changed: tuple[str, ...] = ()
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether every bit is the same."""
        return all(item.equal for item in self.arrays)

    @property
    def deviation(self) -> float:
        """The largest deviation of any array."""
        return max((item.deviation for item in self.arrays), default=0.0)


@dataclass(frozen=True, slots=True)
class Given:
    """What the results do not say: another place of the checkpoint or the data, or how to read them."""

    checkpoint: Path | None = None
    data: str | None = None
    layout: str | None = None
    weights: str | None = None
    trust: Trust = field(default_factory=Trust)


def verify(path: Path, name: str, samples: int, given: Given) -> Verified:
    """Recompute `samples` of the stored samples of one analyzer, spread over all.

    Raises ResultsError where checkpoint or data are other ones than those that made the results.
    """
    if name not in plugins.names("analyzer"):
        return Verified(name, "skipped", reason="no such analyzer is installed")
    analyzer: Analyzer = plugins.load("analyzer", name)
    stored = read_group(path, name)
    facts = provenance(stored)
    if analyzer.kind in ("reduce", "cross"):
        why = {"reduce": "it is one sum over all samples", "cross": "it compares several checkpoints"}
        return Verified(
            name, "skipped", reason=f"{why[analyzer.kind]}; run the analyzer again into another --out"
        )
    settings = facts["settings"]
    if settings.get("analyzer_version") != analyzer.version:
        reason = f"made by version {settings.get('analyzer_version')} of {name}, this is {analyzer.version}"
        return Verified(name, "skipped", reason=reason)
    checkpoint = given.checkpoint or _located(Path(facts["checkpoint"]["path"]), path)
    common = _common(facts, stored, given)
    options = _options(analyzer, settings["options"])
    prepared = prepare(analyzer, checkpoint, options, common, {})
    with threadpool_limits(common.threads or 1):
        if isinstance(prepared.task, WeightsTask):
            new = settings_of_weights(prepared.task)
            _same_sources(settings, new, checkpoint)
            fresh = {str(key): array.values for key, array in run_weights(prepared.task).data_vars.items()}
            return _compared(name, stored, fresh, None, settings, new)
        task = replace(prepared.task, chunk=int(settings["chunk"]))
        new = settings_of(task)
        _same_sources(settings, new, checkpoint)
        places = _spread(len(task.data), min(samples, task.chunk))
        few = replace(task, data=some(task.data, places))
        fresh = compute_chunk(few, 0, task.facts)
    return _compared(name, stored, fresh, places, settings, new)


def _compared(
    name: str,
    stored: xarray.Dataset,
    fresh: Mapping[str, Any],
    places: list[int] | None,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> Verified:
    changed = tuple(differences(_relevant(old), _relevant(new)))
    tolerance = TOLERANCE.get(str(old.get("dtype", "float64")), 1e-4)
    marked: Any = np.zeros(0, dtype=bool)
    # on the same machine with the same versions rounding is the same too, and a kink explains nothing
    if places is not None and changed and "near_kink" in stored:
        marked = stored["near_kink"].values[places] > 0
    found = []
    for key, array in fresh.items():
        if key not in stored or (places is not None and "sample" not in stored[key].dims):
            continue
        before = stored[key].values
        if places is not None:
            before = stored[key].transpose("sample", ...).values[places]
        if before.shape != array.shape:
            found.append(Checked(key, False, float("inf"), holds=False))
        else:
            found.append(
                _check(key, before, array, stored[key].dims[:2] == ("sample", "vector"), marked, tolerance)
            )
    if not found:
        return Verified(name, "skipped", reason="nothing of what it stores can be recomputed alone")
    status: Literal["reproduced", "differs"] = (
        "reproduced" if all(item.holds for item in found) else "differs"
    )
    count = 0 if places is None else len(places)
    return Verified(name, status, count, tuple(found), changed)


def _check(name: str, old: Any, new: Any, vectors: bool, marked: Any, tolerance: float) -> Checked:
    if old.dtype == new.dtype and old.tobytes() == new.tobytes():
        return Checked(name, True, 0.0)
    a, b = old.astype(np.float64), new.astype(np.float64)
    if vectors:
        # a singular vector is known up to its sign
        b = b * np.where((a * b).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    scale = float(np.abs(a[np.isfinite(a)]).max()) if np.isfinite(a).any() else 1.0
    with np.errstate(invalid="ignore"):
        away = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)) / (scale or 1.0)
    away = np.where(np.isnan(away), np.inf, away)
    per_sample = away.reshape(len(away), -1).max(1) if away.ndim and away.size else np.zeros(0)
    beyond = per_sample > tolerance
    if len(marked) == len(per_sample):
        kinks = int((beyond & marked).sum())
        rest = per_sample[~(beyond & marked)]
    else:
        kinks, rest = 0, per_sample if away.ndim else away.reshape(-1)
    worst = float(rest.max()) if rest.size else 0.0
    return Checked(name, False, worst, kinks, worst <= tolerance)


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    # options are stored settled; sources were compared already
    return {key: value for key, value in settings.items() if key not in ("options", "data", "checkpoint")}


def _same_sources(old: Mapping[str, Any], new: Mapping[str, Any], checkpoint: Path) -> None:
    if old["checkpoint"]["sha256"] != new["checkpoint"]["sha256"]:
        raise ResultsError(
            f"{checkpoint} is not the checkpoint that made these results (another SHA-256).",
            "Name the right file: specdiag verify RESULTS.h5 CKPT",
        )
    before, after = (settings.get("data") or {} for settings in (old, new))
    if before.get("sha256") != after.get("sha256"):
        raise ResultsError(
            "The data are not those that made these results (another SHA-256 of the samples).",
            "Name them with --data, and --layout where a file's axes do not tell.",
        )


def _located(path: Path, results: Path) -> Path:
    """The checkpoint as stored, also seen from the folders above the results."""
    for base in (Path(), *list(results.absolute().parents)[:3]):
        if (base / path).is_file():
            return base / path
    raise CheckpointError(
        f"The checkpoint {path} is not there.", "Name it: specdiag verify RESULTS.h5 CKPT", "missing"
    )


def _common(facts: Mapping[str, Any], stored: xarray.Dataset, given: Given) -> Common:
    settings = facts["settings"]
    made, data = settings["checkpoint"], facts.get("data") or {}
    # a file that was trusted brought its own architecture
    own = not facts["checkpoint"].get("trusted")
    wanted = Wanted(
        arch=(made.get("architecture") or None) if own else None,
        arch_args=(made.get("arch_args") or {}) if own else {},
        normalise=made.get("normalise"),
        mean=tuple(made["mean"]) if made.get("mean") else None,
        std=tuple(made["std"]) if made.get("std") else None,
        data=given.data or data.get("spec"),
    )
    device = "cuda" if settings.get("device", "cpu") != "cpu" and torch.cuda.is_available() else "cpu"
    return Common(
        wanted=wanted,
        weights=given.weights,
        input_layer=made.get("input_layer"),
        trust=given.trust,
        split=str(data.get("split", "test")),
        samples=_per_split(stored, data),
        seed=int(settings.get("seed", 0)),
        layout=given.layout,
        device=device,
        dtype=str(settings.get("dtype", "float32")),
        space=str(made.get("space", "data")),
        threads=settings.get("threads"),
        compile="on" if settings.get("compile") in (True, "on") else "off",
        batch_size=settings.get("chunk"),
    )


def _per_split(stored: xarray.Dataset, data: Mapping[str, Any]) -> int:
    """`--samples` counts each split by itself."""
    if data.get("split") == "both" and "split" in stored.coords:
        return int(np.unique(stored["split"].values.astype(str), return_counts=True)[1].max())
    return int(data.get("samples") or 200)


def _options(analyzer: Analyzer, stored: Mapping[str, Any]) -> Any:
    """Options from what a results file holds; attacks with all their values."""
    known = {item.name for item in fields(analyzer.options)}
    return build(analyzer.options, {name: _plain(value) for name, value in stored.items() if name in known})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) and "name" in value:
        return AttackSpec(str(value["name"]), {key: entry for key, entry in value.items() if key != "name"})
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _spread(total: int, count: int) -> list[int]:
    """`count` places spread over `total`, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, total - 1, max(1, min(count, total)))})
