"""The Jacobian that `jacobian` and `spectrum` share, by the method that their options name."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from specdiag.jacobian.regression import Design
    from specdiag.jacobian.rows import Jacobian
    from specdiag.model import Model
    from specdiag.sampling import Batch, Draws


def extract(model: Model, batch: Batch, options: Any) -> Jacobian:
    """Jacobian of a batch by `options.method`.

    The methods that go sample by sample do not spend their time on padding: they repeat the last row for it.
    """
    from specdiag.jacobian.difference import by_difference
    from specdiag.jacobian.regression import by_regression, default_count
    from specdiag.jacobian.rows import by_autograd

    if options.method == "autograd":
        return by_autograd(model, batch.x, options.layer)
    x = batch.x[: batch.count]
    if options.method == "difference":
        return _repeated(by_difference(model, x, options.layer), len(batch))
    count = options.perturbations or default_count(model.inputs)
    radius = options.radius or 0.01 * batch.facts["median_norm"]
    design = _design(batch.draws, model.inputs, count, radius, model.device)
    return _repeated(by_regression(model, x, design, options.layer, options.activations), len(batch))


def _repeated(jacobian: Jacobian, size: int) -> Jacobian:
    import torch

    def grow(value: torch.Tensor | None) -> torch.Tensor | None:
        missing = 0 if value is None else size - len(value)
        return (
            value
            if value is None or not missing
            else torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
        )

    grown: Any = {item.name: grow(getattr(jacobian, item.name)) for item in fields(jacobian)}
    return type(jacobian)(**grown)


@lru_cache(maxsize=1)
def _design(draws: Draws, inputs: int, count: int, radius: float, device: torch.device) -> Design:
    from specdiag.jacobian.regression import make_design

    return make_design(draws, inputs, count, radius, device)
