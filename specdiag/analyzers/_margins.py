"""Margins in output and input space (wen2020 definitions 3, 4 and 6)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from specdiag.model import Model
    from specdiag.sampling import Batch

BISECTIONS, WAYPOINTS = 40, 16


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """f_y - max_{j != y} f_j of each sample, (N,) float64."""
    values = logits.double()
    own = values.gather(1, labels[:, None])
    return own[:, 0] - values.scatter(1, labels[:, None], -torch.inf).amax(1)


def ramp(margin: torch.Tensor, gamma: float) -> torch.Tensor:
    """The ramp loss min(1, max(0, 1 - M / gamma))."""
    return (1 - margin / gamma).clamp(0, 1)


def boundary(model: Model, batch: Batch, steps: int) -> dict[str, torch.Tensor]:
    """Distance to the decision boundary along DeepFool's direction, from the network's own answer.

    instance_margin: (N,) length at which the answer changes, closed by bisection to rounding; NaN where DeepFool finds no
    boundary. monotone: (N,) whether the margin of the answer falls at each of 16 points on the way (assumption 3.1).
    """
    from specdiag.attacks._boundary import deepfool
    from specdiag.attacks.deepfool import DeepFool

    outcome = deepfool(DeepFool(steps=steps, label="predicted"), model, batch)
    answer = model.logits(batch.x).argmax(1)
    reached = model.logits(outcome.x).argmax(1) != answer
    offset: Any = outcome.x - batch.x
    shape = (-1, *[1] * (offset.ndim - 1))
    low = torch.zeros(len(answer), dtype=torch.float64, device=offset.device)
    high = torch.ones_like(low)

    def at(share: torch.Tensor) -> torch.Tensor:
        return margins(model.logits(batch.x + share.to(offset.dtype).reshape(shape) * offset), answer)

    # floats of the model's dtype: finer than its spacing bisection does nothing
    for _ in range(BISECTIONS if offset.dtype == torch.float64 else 22):
        middle = (low + high) / 2
        kept = at(middle) > 0
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    way = [at(high * k / WAYPOINTS) for k in range(WAYPOINTS + 1)]
    falling = torch.stack([b < a for a, b in itertools.pairwise(way)]).all(0)
    length = torch.linalg.vector_norm(offset.double().flatten(1), dim=1) * high
    return {
        "instance_margin": torch.where(reached, length, torch.nan),
        "monotone": falling & reached,
    }
