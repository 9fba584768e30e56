"""What is measured along a direction from a batch of points: deviation, singular values, activations, walls."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from specdiag.analyzers import _attacked, _cells, _paths
from specdiag.attacks._dominant import Leading, is_large, leading
from specdiag.attacks._eps import norm_of
from specdiag.attacks._gradient import pull_back
from specdiag.attacks._losses import Loss
from specdiag.attacks._run import labels_of
from specdiag.errors import ModelError
from specdiag.jacobian.rows import by_autograd
from specdiag.linalg.svd import svd
from specdiag.linearise import Linearised
from specdiag.model import Model
from specdiag.sampling import Batch
from specdiag.schema import Arrays


def unit(offset: torch.Tensor, usable: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Offsets (N, D) as unit directions in the shape of the inputs, NaN where not usable."""
    scaled = offset / torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    return torch.where(usable[:, None], scaled, torch.nan).reshape(batch.x.shape).to(batch.x.dtype)


def dominant(model: Model, batch: Batch, found: Leading, attack: Any) -> torch.Tensor:
    """The dominant right singular vector, with the sign along which the loss rises."""
    vector = found.right[:, :, 0]
    if model.outputs > 1:
        labels = labels_of(getattr(attack, "label", "true"), model, batch)
        gradient = pull_back(model.forward, batch.x, Loss("cross-entropy"), labels)
        slope = (gradient.v.double().flatten(1) * vector).sum(1, keepdim=True)
        vector = torch.where(slope < 0, -vector, vector)
    return unit(vector, found.sound, batch)


def largest(model: Model, batch: Batch, x: torch.Tensor) -> torch.Tensor:
    """Largest singular value of the logits' J at x, (N,), NaN where it is not finite."""
    if is_large(model):
        return leading(model, dataclasses.replace(batch, x=x), 1).values[:, 0]
    matrix = by_autograd(model, x).matrix
    finite = torch.isfinite(matrix).flatten(1).all(1)
    values = svd(torch.where(finite[:, None, None], matrix, 0.0)).values[:, 0]
    return torch.where(finite, values, torch.nan)


def adapted(model: Model, batch: Batch, options: Any, distances: tuple[float, ...]) -> list[torch.Tensor]:
    """One adversarial unit direction per distance, from an attack whose ball just holds it."""
    shrink = model.inputs**-0.5 if norm_of(options.attack) == "linf" else 1.0
    result = []
    for distance in distances:
        attack = _attacked.attack_of(options.attack, clip=options.clip, eps=distance * shrink)
        found = _attacked.attacked(attack, model, batch)
        result.append(unit(found.offset, found.usable, batch))
    return result


class Ray:
    """Measures along one direction after another from the same points."""

    def __init__(
        self, model: Model, batch: Batch, layer: str, distances: tuple[float, ...], sigma: bool
    ) -> None:
        self.model, self.batch, self.distances, self.sigma = model, batch, distances, sigma
        self.layer = layer
        self.frozen = Linearised(lambda x: model.forward(x, layer), batch.x)
        self.clean = _cells.states(model, batch.x)

    def measure(self, direction: torch.Tensor, adapted: list[torch.Tensor] | None) -> Arrays:
        """Arrays (N, P) along one direction, or along another one at each distance."""
        columns: dict[str, list[torch.Tensor]] = {"deviation": [], "change": [], "same_activations": []}
        columns["activations_changed"] = []
        if self.sigma:
            columns["sigma_max"] = []
        before, passed = self.clean, torch.zeros(len(direction), dtype=torch.int64, device=direction.device)
        slope = None if adapted is not None else self.frozen.jvp(direction).double()
        for number, distance in enumerate(self.distances):
            along = direction if adapted is None else adapted[number]
            first_order = self.frozen.jvp(along).double() if slope is None else slope
            x = self.batch.x + distance * along
            with torch.no_grad():
                change = self.model.forward(x, self.layer).double() - self.frozen.value.double()
            columns["change"].append(torch.linalg.vector_norm(change, dim=1))
            columns["deviation"].append(torch.linalg.vector_norm(change - distance * first_order, dim=1))
            now = _cells.states(self.model, x)
            columns["same_activations"].append(_same(self.clean[0], now[0], x))
            passed = passed + _differ(before, now)
            columns["activations_changed"].append(passed)
            before = now if adapted is None else before
            if adapted is not None:
                passed = torch.zeros_like(passed)
            if self.sigma:
                columns["sigma_max"].append(largest(self.model, self.batch, x))
        return {name: torch.stack(column, 1) for name, column in columns.items()}


def _same(before: torch.Tensor, now: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    share = (before == now).double().mean(1) if before.shape[1] else torch.ones(len(x)).to(x).double()
    return torch.where(torch.isfinite(x).flatten(1).all(1), share, torch.nan)


def _differ(
    before: tuple[torch.Tensor, torch.Tensor], now: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    known = (before[1] >= 0) & (now[1] >= 0)
    return (before[0] != now[0]).sum(1) + (known & (before[1] != now[1])).sum(1)


def walks(
    model: Model,
    batch: Batch,
    budget: int,
    directions: list[torch.Tensor],
    distances: tuple[float, ...],
) -> Arrays:
    """Distance to the first wall along each direction and, within the budget, every wall and the lemma's sum."""
    if _cells.curved_module(model, batch.x) is not None:
        return {}
    try:
        walls = Linearised(_cells.wall_distances(model), batch.x)
    except ModelError:
        # a kink whose walls are not understood
        return {}
    usable = [torch.isfinite(direction).flatten(1).all(1) for direction in directions]
    safe = [torch.nan_to_num(direction) for direction in directions]

    def gather(columns: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.where(u, c, torch.nan) for u, c in zip(usable, columns, strict=True)], 1)

    arrays: Arrays = {"first_wall": gather([_cells.radius_along(walls, direction) for direction in safe])}
    if not budget:
        return arrays
    marks = torch.tensor(distances, dtype=batch.x.dtype, device=batch.x.device)
    passed, errors = [], []
    for direction in safe:
        found = _paths.walk(model, batch.x, direction, marks, budget)
        change = model.logits(batch.x + distances[-1] * direction) - model.logits(batch.x)
        size = torch.linalg.vector_norm(change, dim=1).double()
        error = torch.linalg.vector_norm((found.moved - change).double(), dim=1) / size
        errors.append(torch.where(found.finished, error, torch.nan))
        passed.append(torch.where(found.finished[:, None], found.passed.double(), torch.nan))
    arrays["path_error"] = gather(errors)
    arrays["walls_crossed"] = torch.stack(passed, 1)
    return arrays
