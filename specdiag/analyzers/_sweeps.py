"""Attacks over a list of eps: who is fooled from which eps on, what it does to loss and answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from specdiag.analyzers import _attacked
from specdiag.attacks._ball import norms
from specdiag.attacks._eps import EPS_LINF, SHARE_L2, norm_of
from specdiag.attacks._losses import Loss
from specdiag.attacks._run import Ray, along, labels_of
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.options import load_attack
from specdiag.sampling import CHUNK_MULTIPLE, Batch
from specdiag.schema import Arrays, AttackSpec, fields

CROSS_ENTROPY = Loss("cross-entropy")
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
PENALTIES = (0.25, 0.5, 1.0, 2.0, 4.0)
ONE_STEP = {"l2": "fgm-l2", "linf": "fgsm"}


@dataclass(frozen=True, slots=True)
class Grid:
    """The eps axis: values as asked for, and what turns them into radii."""

    eps: tuple[float, ...]
    unit: Literal["data", "8bit"]
    scale: Literal["none", "dimension", "mean-norm", "snr"]

    def radius(self, eps: float, norm: str | None, model: Model, batch: Batch) -> torch.Tensor:
        """Radius per sample, (N,) float64, of an attack in `norm` (None counts as l2)."""
        value = eps / 255 if self.unit == "8bit" else eps
        size = torch.full((len(batch),), value, dtype=torch.float64, device=batch.x.device)
        dimension = float(model.inputs)
        power = 0.0 if norm == "linf" else 0.5
        if self.scale == "dimension":
            size = size * dimension**power
        if self.scale == "mean-norm":
            if norm == "linf":
                raise UsageError("--eps-scale mean-norm is defined for l2.", "Use --eps-scale snr.")
            return size * batch.facts["mean_norm"]
        if self.scale == "snr":
            size = size * norms(batch.x) * dimension ** (power - 0.5)
        return size


def grid_of(options: Any, batch: Batch) -> Grid:
    """The eps asked for; left out, 0.25 to 2 times the eps of the first attack that has one."""
    unit, scale = options.eps_unit, options.eps_scale
    if options.eps_sweep:
        return Grid(options.eps_sweep, unit, scale)
    with_eps = [spec for spec in options.attack if isinstance(spec.values.get("eps"), int | float)]
    if scale == "none":
        if len({norm_of(spec) for spec in with_eps}) > 1:
            raise UsageError(
                "The attacks measure eps in different norms.", "Pass --eps-sweep, or --eps-scale dimension."
            )
        base = float(with_eps[0].values["eps"]) if with_eps else SHARE_L2 * batch.facts["mean_norm"]
        base = base or SHARE_L2 * batch.facts["mean_norm"]
    else:
        base = EPS_LINF if scale == "dimension" else SHARE_L2
    factor = 255.0 if unit == "8bit" else 1.0
    return Grid(tuple(base * factor * multiple for multiple in MULTIPLES), unit, scale)


class Sweep:
    """All measurements on one batch."""

    def __init__(self, model: Model, batch: Batch, options: Any) -> None:
        self.model, self.batch, self.options = model, batch, options
        self.grid = grid_of(options, batch)
        self.logits = model.logits(batch.x).double()
        self.answers = self.logits.argmax(1)
        self.labels = labels_of("true", model, batch)
        self.correct = self.answers == self.labels
        self.rays: dict[tuple[str, str | None], Ray] = {}
        self.clean_loss = CROSS_ENTROPY.value(self.logits, self.labels)

    def ball(self, spec: AttackSpec) -> Arrays:
        """Arrays (N, E) of an attack with an eps; a point found at a smaller eps counts at every larger one."""
        norm = norm_of(spec)
        fooled = ~self.correct
        changed = torch.zeros_like(fooled)
        known = torch.ones_like(fooled)
        loss = self.clean_loss.clone()
        length = torch.zeros_like(loss)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in _COLUMNS}
        for eps in self.grid.eps:
            size = self.grid.radius(eps, norm, self.model, self.batch)
            if self.options.accuracy_only:
                rows = (~changed).nonzero()[:, 0]
                moved = self._run(spec, size, rows, label="predicted", stop=True)
                changed[rows] = moved.answers != self.answers[rows]
                fooled = fooled | changed
                known[rows] = moved.known
                length = length.index_copy(0, rows, moved.norm)
            else:
                everyone = torch.arange(len(fooled), device=fooled.device)
                moved = self._run(spec, size, everyone)
                fooled = fooled | (moved.answers != self.labels)
                changed = changed | (moved.answers != self.answers)
                loss, length, known = torch.maximum(loss, moved.loss), moved.norm, moved.known
                wrong = (~self.correct & ~changed).nonzero()[:, 0]
                again = self._run(spec, size, wrong, label="predicted")
                changed[wrong] = again.answers != self.answers[wrong]
            columns["fooled"].append(_or_nan(fooled, known | fooled))
            columns["changed"].append(_or_nan(changed, known | changed))
            columns["loss"].append(torch.where(known, loss, torch.nan))
            columns["perturbation_norm"].append(length)
            columns["radius"].append(size)
        return {name: torch.stack(column, 1) for name, column in columns.items()}

    def minimal(self, spec: AttackSpec) -> Arrays:
        """Arrays (N, E) of an attack that looks for the smallest perturbation: fooled where its norm is within eps."""
        norm = norm_of(spec)
        rows = torch.arange(len(self.correct), device=self.correct.device)
        moved = self._run(spec, None, rows)
        again = self._run(spec, None, rows, label="predicted")
        length = _length(moved.offset, norm)
        other = _length(again.offset, norm)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in _COLUMNS}
        for eps in self.grid.eps:
            size = self.grid.radius(eps, norm, self.model, self.batch)
            within = length <= size
            fooled = ~self.correct | (within & (moved.answers != self.labels))
            changed = (other <= size) & (again.answers != self.answers)
            columns["fooled"].append(_or_nan(fooled, moved.known | fooled))
            columns["changed"].append(_or_nan(changed, again.known | changed))
            columns["loss"].append(
                torch.where(within, torch.maximum(moved.loss, self.clean_loss), self.clean_loss)
            )
            columns["perturbation_norm"].append(norms(moved.offset))
            columns["radius"].append(size)
        return {name: torch.stack(column, 1) for name, column in columns.items()}

    def penalised(self, spec: AttackSpec) -> Arrays:
        """Arrays (N, P) of an attack with a penalty instead of an eps, over penalties."""
        base = float(spec.values["penalty"])
        penalties = self.options.penalty_sweep or tuple(base * multiple for multiple in PENALTIES)
        columns: dict[str, list[torch.Tensor]] = {"fooled": [], "norm": [], "loss": []}
        rows = torch.arange(len(self.correct), device=self.correct.device)
        for penalty in penalties:
            chosen = AttackSpec(spec, {**spec.values, "penalty": penalty})
            moved = self._run(chosen, None, rows)
            columns["fooled"].append(_or_nan(moved.answers != self.labels, moved.known))
            columns["norm"].append(torch.where(moved.known, moved.norm, torch.nan))
            columns["loss"].append(torch.where(moved.known, moved.loss, torch.nan))
        arrays: Arrays = {f"penalty_{name}": torch.stack(column, 1) for name, column in columns.items()}
        return arrays | {"penalty": torch.tensor(penalties, dtype=torch.float64)}

    def controls(self, spec: AttackSpec) -> Arrays:
        """What random directions and a single step do, and the attack itself once more at the largest eps alone."""
        norm = norm_of(spec) or "l2"
        rows = torch.arange(len(self.correct), device=self.correct.device)
        found: dict[str, list[torch.Tensor]] = {"random_fooled": [], "one_step_fooled": []}
        for eps in self.grid.eps:
            size = self.grid.radius(eps, norm, self.model, self.batch)
            for name, attack in (("random_fooled", f"random-{norm}"), ("one_step_fooled", ONE_STEP[norm])):
                moved = self._run(AttackSpec(attack), size, rows)
                found[name].append(_or_nan(moved.answers != self.labels, moved.known))
        size = self.grid.radius(self.grid.eps[-1], norm, self.model, self.batch)
        fresh = self._run(spec, size, rows, stop=self.options.accuracy_only)
        arrays: Arrays = {name: torch.stack(column, 1) for name, column in found.items()}
        arrays["alone_fooled"] = _or_nan(~self.correct | (fresh.answers != self.labels), fresh.known)
        return arrays

    def _run(
        self,
        spec: AttackSpec,
        size: torch.Tensor | None,
        rows: torch.Tensor,
        label: str | None = None,
        stop: bool = False,
    ) -> _Moved:
        """Attack the samples `rows` alone, in a batch padded to a multiple of 8."""
        if not len(rows):
            nothing = torch.zeros(0, dtype=torch.float64, device=rows.device)
            return _Moved(nothing.long(), nothing, nothing, nothing.bool(), self.batch.x[:0].double())
        part = _subset(self.batch, rows)
        eps: Any = None
        if size is not None:
            short = size[rows]
            extra = len(part) - len(short)
            eps = torch.cat([short, short[-1:].expand(extra)])
            # one number where all are equal: cheaper, and foreign attacks take no other
            eps = float(eps[0]) if bool((eps == eps[0]).all()) else eps
        attack = _attacked.attack_of(spec, clip=self.options.clip, eps=eps, label=label)
        found = self._on_ray(spec, attack, label, part, rows)
        if found is None:
            found = _attacked.attacked(attack, self.model, part, stop=stop)
        logits = self.model.logits(found.x).double()
        count = len(rows)
        answers, labels = logits.argmax(1), labels_of("true", self.model, part)
        still = found.norm == 0
        # a stopped or minimal attack may leave a sample where it is, as long as its gradients were sound
        known = found.usable | (still & ~found.dead)
        loss = CROSS_ENTROPY.value(logits, labels)
        return _Moved(
            answers[:count],
            loss[:count],
            found.norm[:count],
            (known & torch.isfinite(logits).all(1))[:count],
            (found.x - part.x)[:count].double(),
        )

    def _on_ray(
        self, spec: AttackSpec, attack: Any, label: str | None, part: Batch, rows: torch.Tensor
    ) -> _attacked.Attacked | None:
        """The points of an attack that goes along one line for every eps, from the line drawn once."""
        if not hasattr(attack, "ray"):
            return None
        key = (str(spec), label)
        if key not in self.rays:
            self.rays[key] = attack.ray(self.model, self.batch)
        whole = self.rays[key]
        # the part may end in copies of its last sample
        places = torch.cat([rows, rows[-1:].expand(len(part) - len(rows))])
        ray = Ray(whole.unit[places], whole.dead[places], whole.two_sided)
        norm = norm_of(spec) or "l2"
        return _attacked.details(along(attack, str(spec), norm, ray, self.model, part), part)


_COLUMNS = ("fooled", "changed", "loss", "perturbation_norm", "radius")


@dataclass(frozen=True, slots=True)
class _Moved:
    answers: torch.Tensor
    loss: torch.Tensor
    norm: torch.Tensor
    known: torch.Tensor
    offset: torch.Tensor


def kind_of(spec: AttackSpec) -> Literal["ball", "minimal", "penalised"]:
    """How an attack's strength is set: by a radius, not at all, or by a penalty."""
    names = {item.name for item in fields(load_attack(spec).options)}
    if "penalty" in names:
        return "penalised"
    if "eps" not in names or (spec.startswith("foolbox:") and spec.values.get("eps") is None):
        return "minimal"
    return "ball"


def together(parts: Sequence[Arrays], size: int) -> Arrays:
    """Arrays (N, E) of several attacks as (N, A, E)."""
    return (
        {name: torch.stack([part[name] for part in parts], 1) for name in parts[0]} if parts and size else {}
    )


def _subset(batch: Batch, rows: torch.Tensor) -> Batch:
    if len(rows) == len(batch):
        return batch
    small = dataclasses.replace(
        batch,
        x=batch.x.index_select(0, rows),
        y=None if batch.y is None else batch.y.index_select(0, rows),
        index=batch.index[rows.cpu().numpy()],
        real=None,
    )
    return small.padded(min(len(batch), math.ceil(len(rows) / CHUNK_MULTIPLE) * CHUNK_MULTIPLE))


def _length(offset: torch.Tensor, norm: str | None) -> torch.Tensor:
    return offset.abs().flatten(1).amax(1) if norm == "linf" else norms(offset)


def _or_nan(flag: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """1 or 0, NaN where it is not known."""
    return torch.where(known, flag.float(), torch.nan)
