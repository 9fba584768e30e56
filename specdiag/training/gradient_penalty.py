"""Penalty on the dual norm of the loss gradient (simongabriel2019 eq. 4; q = 2 is double backpropagation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._attacked import eps_option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class GradientPenalty(Method):
    """(eps / 2) E ||grad_x L||_q; to first order, training against p-attacks of size eps.

    p is the dual of q: q = 1 stands for linf, q = 2 for l2.
    """

    q: int = option(2, "Norm of the gradient: 1 or 2.", min=1, max=2)
    eps: float | Literal["auto"] = eps_option()

    def penalty(self, step: Step) -> torch.Tensor:
        """The mean over the batch."""
        import torch

        from specdiag.training._attack import radius

        with step.fixed() as forward:
            gradients = step.loss_gradients(step.x, forward)
        lengths = torch.linalg.vector_norm(gradients.flatten(1), ord=self.q, dim=1)
        mean: torch.Tensor = lengths.mean()
        return radius(step.run, self.eps, self.dual) / 2 * mean

    @property
    def dual(self) -> Literal["l2", "linf"]:
        """The norm of the attacks that the penalty stands for."""
        return "linf" if self.q == 1 else "l2"

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants; eps is a size in the dual norm."""
        from specdiag.training._attack import radius

        return {"norm": self.dual, "eps": radius(run, self.eps, self.dual), "q": self.q}


METHOD = TrainingMethod(
    name="gradient-penalty",
    summary="Penalty on the q-norm of the loss gradient.",
    source="simongabriel2019, eq. 4",
    options=GradientPenalty,
)
