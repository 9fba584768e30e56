"""Gradient-norm regularisation: structured gradient regularisation with the identity (roth2018 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class GradientNorm(Method):
    """(lambda / 2) E ||grad_x log p_y||_2^2."""

    lam: float = option(0.1, "lambda, the weight of the penalty.", min=0)

    def penalty(self, step: Step) -> torch.Tensor:
        """The mean over the batch."""
        with step.fixed() as forward:
            gradients = step.loss_gradients(step.x, forward)
        return self.lam / 2 * gradients.square().flatten(1).sum(1).mean()

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constant."""
        return {"lambda": self.lam}


METHOD = TrainingMethod(
    name="gradient-norm",
    summary="Penalty on the squared norm of the loss gradient.",
    source="roth2018, eq. 11 with the identity",
    options=GradientNorm,
)
