"""Training on one-step l2 perturbations (FGM, farnia2019 eq. 5)."""

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
class Fgm(Attacked):
    """x* = x + eps g / ||g||_2, g the gradient of the loss at x."""

    eps: float | Literal["auto"] = eps_option()
    objective: Objective = objective_option("only")
    attack_weight: float | Literal["auto"] = weight_option()
    clip: bool = clip_option()

    def perturb(self, step: Step) -> torch.Tensor:
        """The points x* of a batch."""
        from specdiag.training._attack import perturb, radius

        return perturb(step, "fgm-l2", {"eps": radius(step.run, self.eps, "l2"), "clip": self.clip})

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What the attack and the objective were."""
        from specdiag.training._attack import radius

        eps = radius(run, self.eps, "l2")
        attack = {"norm": "l2", "eps": eps, "alpha": eps, "steps": 1, "clip": self.clip}
        return {**attack, **self.objective_facts()}


METHOD = TrainingMethod(
    name="fgm",
    summary="Training on samples moved by one l2 gradient step.",
    source="farnia2019, eq. 4 and 5",
    options=Fgm,
)
