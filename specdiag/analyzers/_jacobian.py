"""The Jacobian that `jacobian` and `spectrum` share, by the method that their options name."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from specdiag.jacobian.regression import Design
    from specdiag.jacobian.rows import Jacobian
    from specdiag.model import Model
    from specdiag.sampling import Batch, Draws


def extract(model: Model, batch: Batch, options: Any) -> Jacobian:
    """Jacobian of a batch by `options.method`; x is taken as the batch gives it."""
    from specdiag.jacobian.difference import by_difference
    from specdiag.jacobian.regression import by_regression, default_count
    from specdiag.jacobian.rows import by_autograd

    if options.method == "autograd":
        return by_autograd(model, batch.x, options.layer)
    if options.method == "difference":
        return by_difference(model, batch.x, options.layer)
    count = options.perturbations or default_count(model.inputs)
    radius = options.radius or 0.01 * batch.facts["median_norm"]
    design = _design(batch.draws, model.inputs, count, radius, model.device)
    return by_regression(model, batch.x, design, options.layer, options.activations)


@lru_cache(maxsize=1)
def _design(draws: Draws, inputs: int, count: int, radius: float, device: torch.device) -> Design:
    from specdiag.jacobian.regression import make_design

    return make_design(draws, inputs, count, radius, device)
