"""Training on one-step linf perturbations (FGSM, farnia2019 section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod
from specdiag.training._attacked import (
    Attacked,
    Objective,
    clip_option,
    eps_option,
    objective_option,
    weight_option,
)

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class Fgsm(Attacked):
    """x* = x + eps sign(g), g the gradient of the loss at x."""

    eps: float | Literal["auto"] = eps_option()
    objective: Objective = objective_option("only")
    attack_weight: float | Literal["auto"] = weight_option()
    clip: bool = clip_option()

    def perturb(self, step: Step) -> torch.Tensor:
        """The points x* of a batch."""
        from specdiag.training._attack import perturb, radius

        return perturb(step, "fgsm", {"eps": radius(step.run, self.eps, "linf"), "clip": self.clip})

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What the attack and the objective were."""
        from specdiag.training._attack import radius

        eps = radius(run, self.eps, "linf")
        attack = {"norm": "linf", "eps": eps, "alpha": eps, "steps": 1, "clip": self.clip}
        return {**attack, **self.objective_facts()}


METHOD = TrainingMethod(
    name="fgsm",
    summary="Training on samples moved by one step along the signs of the gradient.",
    source="farnia2019, section 2.2; wen2020, B.6",
    options=Fgsm,
)
