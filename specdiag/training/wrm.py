"""Training against perturbations with a quadratic penalty in place of a ball (WRM, farnia2019 eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._attacked import Attacked, Objective, clip_option, objective_option, weight_option

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class Wrm(Attacked):
    """x* = x + argmax over delta of loss(x + delta) - (penalty_weight / 2) ||delta||_2^2."""

    penalty_weight: float | Literal["auto"] = option(
        "auto", "Weight of the penalty; auto: 0.04 mean ||x||_2, or 0.002 for colour images.", above=0
    )
    steps: int = option(15, "Ascent iterations.", min=1)
    objective: Objective = objective_option("only")
    attack_weight: float | Literal["auto"] = weight_option()
    clip: bool = clip_option()

    def perturb(self, step: Step) -> torch.Tensor:
        """The points x* of a batch."""
        from specdiag.training._attack import perturb

        values = {"penalty": self._penalty(step.run), "steps": self.steps, "clip": self.clip}
        return perturb(step, "wrm", values)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What the attack and the objective were; it has no eps."""
        attack = {"penalty": self._penalty(run), "steps": self.steps, "clip": self.clip}
        return {**attack, **self.objective_facts()}

    def _penalty(self, run: Run) -> float:
        from specdiag.attacks._penalised import default_penalty

        if self.penalty_weight != "auto":
            return self.penalty_weight
        return default_penalty(run.input_shape, run.mean_norm)


METHOD = TrainingMethod(
    name="wrm",
    summary="Training on samples moved up the loss less a quadratic penalty.",
    source="farnia2019, eq. 4 and 7",
    options=Wrm,
)
