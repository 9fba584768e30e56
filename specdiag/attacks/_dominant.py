"""The dominant right singular vector of J(x) as a perturbation (roth2020 eq. 7)."""

from __future__ import annotations

from typing import Any

import torch

from specdiag.attacks._ball import Ball, data_range, like, norms, per_sample
from specdiag.attacks._losses import parse_loss
from specdiag.attacks._run import aim, radius
from specdiag.jacobian.rows import by_autograd
from specdiag.linalg.svd import svd
from specdiag.model import Model
from specdiag.sampling import Batch


def dominant(model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sigma_1 (N,) float64 and v_1 (N, *input shape) of each sample's logits; NaN where J is not finite."""
    matrix = by_autograd(model, x).matrix
    finite = torch.isfinite(matrix).flatten(1).all(1)
    found = svd(torch.where(finite[:, None, None], matrix, 0.0), top=1)
    right = found.right
    if right is None:
        raise TypeError("svd returns vectors when asked for them")
    values = torch.where(finite, found.values[:, 0], torch.nan)
    return values, like(right[:, :, 0].reshape(x.shape).to(x.dtype), x)


def power(attack: Any, model: Model, batch: Batch) -> torch.Tensor:
    """X + eps v or x - eps v, whichever has the larger loss; x itself where J is zero or not finite."""
    eps = radius(attack.eps, "power", batch)
    ball = Ball("l2", eps, *data_range(model, batch, attack.clip))
    loss = parse_loss(attack.loss)
    labels, targeted = aim(attack, loss, model, batch)
    sigma, v = dominant(model, batch.x)
    usable = torch.isfinite(sigma) & (sigma > 0)
    unit = v / per_sample(norms(v).clamp_min(torch.finfo(torch.float64).tiny), v)
    unit = torch.where(per_sample(usable, unit).bool(), unit, 0.0)
    clean = model.logits(batch.x).double()
    sides, values = [], []
    for sign in (1.0, -1.0):
        x = ball.put(batch.x, unit * sign * ball.radius(unit))
        sides.append(x)
        values.append(loss.value(model.logits(x).double(), labels, clean))
    better = (values[0] <= values[1]) if targeted else (values[0] >= values[1])
    x = torch.where(per_sample(better, sides[0]).bool(), sides[0], sides[1])
    ball.check(x, batch.x)
    return x
