"""DeepFool: to the nearest decision boundary of the linearised network (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch

from specdiag.attacks._ball import Ball, data_range, norms, per_sample
from specdiag.attacks._gradient import Outcome, repack, take
from specdiag.attacks._run import labels_of
from specdiag.model import Model
from specdiag.sampling import Batch

# a step ends beyond the boundary also where the logits tie already
PUSH = 1e-6


def deepfool(attack: Any, model: Model, batch: Batch) -> Outcome:
    """The attack by its options (steps, candidates, overshoot, label, clip).

    A sample whose answer differs from its label from the start is not moved. `dead`: no boundary in sight,
    because every difference of logits has a zero gradient.
    """
    x, labels = batch.x, labels_of(attack.label, model, batch)
    cutter = Ball("l2", 0.0, *data_range(model, batch, attack.clip))
    classes = _candidates(model.logits(x), labels, attack.candidates)
    push = PUSH * norms(x).clamp_min(torch.finfo(torch.float64).tiny)
    total, points = torch.zeros_like(x), x.clone()
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    dead, taken = done.clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows: torch.Tensor | None = None
    count = len(x)
    for _ in range(attack.steps):
        everyone = torch.arange(len(x), device=x.device)
        own = everyone if rows is None else rows
        here = take(points, rows)
        fooled, step, blind = _nearest(model, here, labels[own], classes[own], push[own])
        still = done[own] | fooled | blind
        moved = total[own] + torch.where(per_sample(still, step).bool(), torch.zeros_like(step), step)
        there = cutter.cut(x[own] + (1 + attack.overshoot) * moved)
        there = torch.where(per_sample(still, there).bool(), here, there)
        real = own[:count]
        total[real], points[real], done[real] = moved[:count], there[:count], still[:count]
        dead[real] |= (blind & ~fooled)[:count]
        taken[real] += ~still[:count]
        rows, count = repack(done, rows, len(here), count)
        if count == 0:
            break
    return Outcome(points, dead, taken)


def _candidates(logits: torch.Tensor, labels: torch.Tensor, candidates: int) -> torch.Tensor:
    """The other classes with the largest logits at the clean point, (N, C)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(candidates, logits.shape[1]) - 1, dim=1).indices


def _nearest(
    model: Model, x: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, push: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Who is fooled already, the step to the nearest boundary, and who sees none."""
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model.forward(leaf)
        gaps = logits.gather(1, classes) - logits.gather(1, labels[:, None])
    values = gaps.detach().double()
    fooled = logits.detach().argmax(1) != labels
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    step = torch.zeros_like(x)
    columns = 0 if bool(fooled.all()) else classes.shape[1]
    for column in range(columns):
        (slope,) = torch.autograd.grad(gaps[:, column].sum(), leaf, retain_graph=column < columns - 1)
        length = norms(slope)
        usable = torch.isfinite(length) & (length > 0)
        distance = torch.where(usable, values[:, column].abs() / length, torch.inf)
        nearer = distance < best
        factor = torch.where(usable, (distance + push) / length, 0.0)
        step = torch.where(per_sample(nearer, step).bool(), slope * per_sample(factor, step), step)
        best = torch.where(nearer, distance, best)
    return fooled, step, ~torch.isfinite(best)
