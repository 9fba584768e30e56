"""Adversarial training: the loss at points found by projected gradient ascent (roth2020 eq. 10, 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class Adversarial(Method):
    """Which perturbations are trained against, and how their loss is weighed.

    The objectives: `clean+lambda` is L(x) + lambda L(x*) (roth2020 eq. 10), `only` is L(x*) (farnia2019
    eq. 4), `mix` is (1 - lambda) L(x) + lambda L(x*) (simongabriel2019 eq. 5 has lambda = 1/2). With the
    loss `sum-of-squares`, L(x*) is 1/2 ||f(x) - f(x*)||^2, both with BatchNorm in eval mode (roth2020
    eq. 33).
    """

    norm: Literal["l2", "linf"] = option("l2", "Norm of the eps ball.")
    eps: float | Literal["auto"] = option(
        "auto", "Radius in data units; auto: 0.05 mean ||x||_2 for l2, 0.005 for linf.", above=0
    )
    steps: int = option(10, "Attack iterations.", min=1)
    alpha: float | Literal["auto"] = option("auto", "Attack step; auto: 2 eps / steps.", above=0)
    objective: Literal["clean+lambda", "only", "mix"] = option(
        "clean+lambda", "Clean loss plus lambda times attacked loss, attacked loss alone, or a mix."
    )
    lam: float | Literal["auto"] = option(
        "auto", "lambda: weight of the attacked loss, or its share in a mix; auto: 1, or 1/2 in a mix.", min=0
    )
    attack_loss: Literal["cross-entropy", "sum-of-squares"] = option(
        "cross-entropy", "Loss that the attack climbs; with sum-of-squares the objective uses it too."
    )
    random_start: bool = option(True, "Start the attack at a random point of the ball.")
    clip: bool = option(False, "Keep perturbed samples in the range of the data.")

    def batch_loss(self, step: Step) -> torch.Tensor:
        """The objective on one batch."""
        perturbed = self.perturb(step)
        if self.attack_loss == "sum-of-squares":
            with step.run.evaluating() as forward:
                attacked = 0.5 * (forward(perturbed) - forward(step.x)).square().sum(1).mean()
        else:
            attacked = step.cross_entropy(step.run.forward(perturbed))
        if self.objective == "only":
            return attacked
        clean = step.cross_entropy(step.logits)
        share = 1 - self.weight if self.objective == "mix" else 1.0
        return share * clean + self.weight * attacked

    def perturb(self, step: Step) -> torch.Tensor:
        """The adversarial points x* of a batch."""
        from specdiag.training._attack import pgd, radius

        eps = radius(step.run, self.eps, self.norm)
        return pgd(
            step,
            norm=self.norm,
            eps=eps,
            steps=self.steps,
            alpha=self.step_length(eps),
            loss=self.attack_loss,
            random_start=self.random_start,
            clip=self.clip,
        )

    @property
    def weight(self) -> float:
        """The lambda in use."""
        if self.lam != "auto":
            return self.lam
        return 0.5 if self.objective == "mix" else 1.0

    def step_length(self, eps: float) -> float:
        """alpha, for the radius in use."""
        return 2 * eps / self.steps if self.alpha == "auto" else self.alpha

    def facts(self, run: Run) -> Mapping[str, Any]:
        """eps, norm, alpha, steps and the objective as they were used."""
        from specdiag.training._attack import radius

        eps = radius(run, self.eps, self.norm)
        return {
            "norm": self.norm,
            "eps": eps,
            "alpha": self.step_length(eps),
            "steps": self.steps,
            "objective": self.objective,
            "lambda": self.weight,
            "clip": self.clip,
        }


METHOD = TrainingMethod(
    name="adversarial",
    summary="Adversarial training by projected gradient ascent in an l2 or linf ball.",
    source="roth2020, eq. 10 and 11",
    options=Adversarial,
)
