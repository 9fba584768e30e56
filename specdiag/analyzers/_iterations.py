"""Projected gradient ascent and the power method side by side (roth2020 eq. 7, 12, 31)."""

from __future__ import annotations

import math
from typing import Any

import torch

from specdiag.analyzers import _cells
from specdiag.attacks._ball import Ball, data_range, lengths_and_units
from specdiag.attacks._gradient import Gradient
from specdiag.attacks.pgd_l2 import PgdL2
from specdiag.model import Model
from specdiag.sampling import Batch
from specdiag.schema import Arrays

# agreement asked for, and the factor on what rounding leaves
AGREEMENT, ROUNDING = 1e-9, 100.0


def both(
    model: Model,
    batch: Batch,
    matrix: torch.Tensor,
    eps: torch.Tensor,
    usable: torch.Tensor,
    steps: int,
    clip: bool,
) -> dict[str, Any]:
    """The attack's iterates with radius eps (N,) beside those of the power method on matrix (N, K, D) = J(x).

    Returns arrays (N, steps), NaN where not usable: cosine and difference of the directions after the same number
    of steps, and sigma of both; update_gap and sigma_gap between the attack's step and a power step from the
    attack's own last point (rounding grows along both iterations, and is no failure of the theorem); tolerance,
    what rounding leaves of the step; same_cell; and `v`, the attack's directions step by step.
    """
    attack: Any = PgdL2(
        eps=eps,  # type: ignore[arg-type]
        steps=steps,
        alpha=math.inf,
        loss="sum-of-squares",
        label="predicted",
        clip=clip,
    )
    ball = Ball("l2", eps, *data_range(model, batch, clip))
    pair = _Pair(model, batch, matrix, ball.put(batch.x, ball.random(batch, "pgd-l2/start")))
    attack.run(model, batch, observe=pair)
    result: dict[str, Any] = {"v": pair.directions}
    for name in pair.rows[0]:
        column = torch.stack([row[name] for row in pair.rows], 1)
        result[name] = torch.where(usable[:, None], column, torch.nan)
    return result


class _Pair:
    """Sees every step of the attack and takes the same step of the power method."""

    def __init__(self, model: Model, batch: Batch, matrix: torch.Tensor, start: torch.Tensor) -> None:
        self.model, self.x, self.matrix = model, batch.x, matrix
        self.before = start
        self.size = torch.linalg.vector_norm(model.logits(batch.x), dim=1)
        self.v = lengths_and_units((start - batch.x).flatten(1))[1]
        self.clean = _cells.states(model, batch.x)
        self.same = torch.ones(len(batch.x), dtype=torch.bool, device=batch.x.device)
        self.rows: list[dict[str, torch.Tensor]] = []
        self.directions: list[torch.Tensor] = []

    def __call__(self, number: int, points: torch.Tensor, gradient: Gradient) -> None:
        length, own = lengths_and_units((self.before - self.x).flatten(1))
        sigma, self.v = power_step(self.matrix, self.v)
        own_sigma, own_next = power_step(self.matrix, own)
        step = lengths_and_units(gradient.v.flatten(1))[1]
        found = gradient.scale / length
        now = _cells.states(self.model, points)
        self.same = self.same & (now[0] == self.clean[0]).all(1) & (now[1] == self.clean[1]).all(1)
        self.rows.append(
            {
                "cosine": (step * self.v).sum(1).abs(),
                "difference": torch.linalg.vector_norm(step - self.v, dim=1),
                "update_gap": torch.linalg.vector_norm(step - own_next, dim=1),
                "sigma_attack": found,
                "sigma_power": sigma,
                "sigma_gap": (found / own_sigma - 1).abs(),
                "tolerance": tolerance(self.size, length * own_sigma),
                "same_cell": self.same.double(),
            }
        )
        self.directions.append(torch.nan_to_num(step).reshape(self.x.shape))
        self.before = points


def power_step(matrix: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """||J v|| (N,) and the next unit vector along J^T J v (N, D) (eq. 7)."""
    u = (matrix @ v[:, :, None])[:, :, 0]
    return torch.linalg.vector_norm(u, dim=1), lengths_and_units((u[:, None, :] @ matrix)[:, 0])[1]


def agree(arrays: Arrays) -> torch.Tensor:
    """Inside: each update is a step of the power method with its sigma, and the cosines stay at 1, to the tolerance.

    Of unit vectors d apart 1 - cos is d^2 / 2, free of the rounding of a cosine near 1.
    """
    gaps = [arrays["update_gap"], arrays["difference"].square() / 2, arrays["sigma_gap"]]
    within: torch.Tensor = (torch.stack(gaps).amax(0) <= arrays["tolerance"])[:, 0].all(1)
    return within


def tolerance(size: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """max(1e-9, 100 u ||f|| / (eps sigma)): what rounding of f leaves of a difference of length `moved` = eps sigma.

    u is the unit round-off, size (N,) the norm of f; sigma is that of the step, ||J v_{k-1}||.
    """
    unit = torch.finfo(torch.float64).eps / 2
    return torch.clamp(ROUNDING * unit * size / moved, min=AGREEMENT)
