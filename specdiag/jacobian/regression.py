"""The Jacobian by linear regression on randomly perturbed inputs (roth2020 A.5).

With the activations fixed as they are at x, the network is exactly affine and the regression gives its Jacobian to
rounding. With free activations it fits the network as it is over a small ball, which also serves black boxes; R^2 then
says how far the network is from linear there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from specdiag.errors import NumericalError, UsageError
from specdiag.jacobian.rows import Jacobian
from specdiag.kinks import KinkCounter
from specdiag.linearise import Linearised
from specdiag.model import Model
from specdiag.sampling import Draws

Activations = Literal["fixed", "free"]
BLOCK_VALUES = 2**21


@dataclass(frozen=True, slots=True)
class Design:
    """P random perturbations of norm about `radius` and their factorised normal equations, shared by all samples.

    directions: (P, D) float64, rows of variance radius^2 / D per entry; factor: Cholesky factor of the (D+1, D+1)
    Gram matrix of the directions with a column of ones, scaled to unit variance.
    """

    directions: torch.Tensor
    factor: torch.Tensor
    radius: float

    @property
    def scale(self) -> float:
        """Standard deviation of one entry of a direction, in input units."""
        return self.radius / math.sqrt(self.directions.shape[1])


def default_count(inputs: int) -> int:
    """Perturbations for D inputs: 1.25 (D + 1), where the design's condition number is 18 (at D + 1 it is 1e5)."""
    return math.ceil(1.25 * (inputs + 1))


def make_design(draws: Draws, inputs: int, perturbations: int, radius: float, device: torch.device) -> Design:
    """Draw and factorise the design; the draws are keyed by the run's seed alone."""
    if perturbations < inputs + 1:
        raise UsageError(
            f"--perturbations: {perturbations} are too few for {inputs} inputs and a bias.",
            f"Pass at least {inputs + 1}; {default_count(inputs)} is the default.",
        )
    unit = torch.from_numpy(draws.shared_normal("regression-design", (perturbations, inputs))).to(device)
    gram = torch.empty((inputs + 1, inputs + 1), dtype=torch.float64, device=device)
    gram[:inputs, :inputs] = unit.T @ unit
    gram[:inputs, inputs] = gram[inputs, :inputs] = unit.sum(0)
    gram[inputs, inputs] = perturbations
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise NumericalError("The regression design is singular.", "Pass more --perturbations.")
    return Design(unit, factor, radius)


def by_regression(
    model: Model,
    x: torch.Tensor,
    design: Design,
    layer: str = "logits",
    activations: Activations = "fixed",
) -> Jacobian:
    """Least-squares fit of outputs(x + d) by J d + b over the design's perturbations d; x: (N, *input shape)."""
    with torch.no_grad(), KinkCounter() as counter:
        outputs = model.forward(x, layer)
    fits = [_fit(model, sample[None], design, layer, activations) for sample in x]
    matrix = torch.stack([fit[0] for fit in fits]).to(model.dtype)
    at_point = torch.stack([fit[1] for fit in fits])
    bias = at_point - torch.einsum("nkd,nd->nk", matrix.double(), x.flatten(1).double())
    near_kink = (
        counter.counts
        if counter.counts is not None
        else torch.zeros(len(x), dtype=torch.int64, device=x.device)
    )
    return Jacobian(matrix, outputs, near_kink, bias.to(model.dtype), torch.stack([fit[2] for fit in fits]))


def _fit(
    model: Model, x: torch.Tensor, design: Design, layer: str, activations: Activations
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J (K, D), fitted output at x (K,), R^2 over the outputs' total variance)."""
    targets = _outputs(model, x, design, layer, activations).double()
    unit, inputs = design.directions, design.directions.shape[1]
    centre = targets.mean(0)
    centred = targets - centre
    right = torch.cat([unit.T @ centred, centred.sum(0, keepdim=True)])
    solution = torch.cholesky_solve(right, design.factor)
    residual = centred - unit @ solution[:inputs] - solution[inputs]
    total = float(centred.square().sum())
    r2 = torch.tensor(1 - float(residual.square().sum()) / total if total else np.nan, dtype=torch.float64)
    return solution[:inputs].T / design.scale, solution[inputs] + centre, r2


def _outputs(
    model: Model, x: torch.Tensor, design: Design, layer: str, activations: Activations
) -> torch.Tensor:
    """Outputs at x + d for all P perturbations, (P, K), in blocks of bounded memory."""
    frozen = Linearised(lambda value: model.forward(value, layer), x) if activations == "fixed" else None
    block = max(8, BLOCK_VALUES // max(1, model.facts.activations) // 8 * 8)
    parts = []
    for start in range(0, len(design.directions), block):
        unit = design.directions[start : start + block]
        moved = (unit * design.scale).to(model.dtype).view(-1, *model.input_shape)
        if model.channels_last:
            moved = moved.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            parts.append(frozen.value + frozen.jvp(moved) if frozen else model.forward(x + moved, layer))
    return torch.cat(parts)
