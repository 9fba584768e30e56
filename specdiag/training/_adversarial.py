"""The options and hooks of all training on projected gradient ascent; what differs are the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.errors import UsageError
from specdiag.schema import option
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
class Adversarial(Attacked):
    """Which perturbations are trained against, and how their loss is weighed.

    With the loss `sum-of-squares`, L(x*) is 1/2 ||f(x) - f(x*)||^2, both with the BatchNorm statistics
    of the clean batch (roth2020 eq. 33).
    """

    norm: Literal["l2", "linf"] = option("l2", "Norm of the eps ball.")
    eps: float | Literal["auto"] = eps_option()
    steps: int = option(10, "Attack iterations.", min=1)
    alpha: float | Literal["auto"] = option("auto", "Attack step; auto: 2 eps / steps.", above=0)
    objective: Objective = objective_option("clean+lambda")
    attack_weight: float | Literal["auto"] = weight_option()
    attack_loss: Literal["cross-entropy", "sum-of-squares"] = option(
        "cross-entropy", "Loss that the attack climbs; with sum-of-squares the objective uses it too."
    )
    start: Literal["random", "clean"] = option(
        "random", "First point: uniform in the ball, or the clean one."
    )
    clip: bool = clip_option()
    through_attack: bool = option(
        False, "Let gradients flow through the perturbation too (simongabriel2019 app. F)."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant together."""
        if self.attack_loss == "sum-of-squares" and self.start == "clean":
            raise UsageError("Sum-of-squares has no gradient at the clean point.", "Use --start random.")
        if self.through_attack and (self.clip or self.attack_loss != "cross-entropy"):
            raise UsageError(
                "--through-attack goes with the cross-entropy attack, not clipped.",
                "Leave out the other one.",
            )

    def attacked_loss(self, step: Step) -> torch.Tensor:
        """L(x*)."""
        perturbed = self.perturb(step)
        if self.attack_loss == "cross-entropy":
            return step.cross_entropy(step.run.forward(perturbed))
        with step.fixed() as forward:
            return 0.5 * (forward(perturbed) - forward(step.x)).square().sum(1).mean()

    def perturb(self, step: Step) -> torch.Tensor:
        """The adversarial points x* of a batch."""
        from specdiag.training._attack import perturb, radius

        eps = radius(step.run, self.eps, self.norm)
        values = {
            "eps": eps,
            "steps": self.steps,
            "alpha": self.step_length(eps),
            "loss": self.attack_loss,
            "start": self.start,
            "clip": self.clip,
        }
        return (
            self._with_graph(step, eps) if self.through_attack else perturb(step, f"pgd-{self.norm}", values)
        )

    def step_length(self, eps: float) -> float:
        """The step alpha for the radius in use."""
        return 2 * eps / self.steps if self.alpha == "auto" else self.alpha

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What the attack and the objective were."""
        from specdiag.training._attack import radius

        eps = radius(run, self.eps, self.norm)
        attack = {"norm": self.norm, "eps": eps, "alpha": self.step_length(eps), "steps": self.steps}
        return {**attack, "clip": self.clip, **self.objective_facts()}

    def _with_graph(self, step: Step, eps: float) -> torch.Tensor:
        from specdiag.attacks._ball import Ball
        from specdiag.training import _through

        batch = step.as_batch()
        start = Ball(self.norm, eps).random(batch, step.purpose("attack")) if self.start == "random" else None
        with step.run.evaluating() as forward:
            return _through.ascend(
                forward,
                step.x,
                step.y,
                norm=self.norm,
                eps=eps,
                steps=self.steps,
                alpha=self.step_length(eps),
                start=start,
            )
