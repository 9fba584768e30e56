"""What all attack methods share: the objective that weighs clean and attacked loss, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Step

Objective = Literal["clean+lambda", "only", "mix"]


class Attacked(Method):
    """Training on perturbed samples x*.

    The objectives: `clean+lambda` is L(x) + lambda L(x*) (roth2020 eq. 10), `only` is L(x*) (farnia2019
    eq. 4), `mix` is (1 - lambda) L(x) + lambda L(x*) (simongabriel2019 eq. 5 has lambda = 1/2).
    """

    __slots__ = ()

    objective: Objective
    attack_weight: float | Literal["auto"]

    def perturb(self, step: Step) -> torch.Tensor:
        """The points x* of a batch, (N, *input shape)."""
        raise NotImplementedError

    def attacked_loss(self, step: Step) -> torch.Tensor:
        """L(x*)."""
        return step.cross_entropy(step.run.forward(self.perturb(step)))

    def batch_loss(self, step: Step) -> torch.Tensor:
        """The objective on one batch."""
        attacked = self.attacked_loss(step)
        if self.objective == "only":
            return attacked
        share = 1 - self.weight if self.objective == "mix" else 1.0
        return share * step.cross_entropy(step.logits) + self.weight * attacked

    @property
    def weight(self) -> float:
        """The lambda in use: 1, or 1/2 in a mix, where none was given."""
        if self.attack_weight != "auto":
            return self.attack_weight
        return 0.5 if self.objective == "mix" else 1.0

    def objective_facts(self) -> dict[str, Any]:
        """What the checkpoint keeps of the objective."""
        return {"objective": self.objective, **({} if self.objective == "only" else {"lambda": self.weight})}


def objective_option(default: Objective) -> Any:
    """Objective."""
    return option(default, "Clean loss plus lambda times attacked loss, attacked loss alone, or a mix.")


def weight_option() -> Any:
    """Weight of the attacked loss."""
    return option(
        "auto", "lambda: weight of the attacked loss, or its share in a mix; auto: 1, or 1/2 in a mix.", min=0
    )


def eps_option() -> Any:
    """Radius."""
    return option("auto", "Radius in data units; auto: 0.05 mean ||x||_2 for l2, 0.005 for linf.", above=0)


def clip_option() -> Any:
    """Range of the data."""
    return option(False, "Keep perturbed samples in the range of the data.")
