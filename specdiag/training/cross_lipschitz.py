"""Cross-Lipschitz regularisation (Hein and Andriushchenko; simongabriel2019 eq. 17)."""

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
class CrossLipschitz(Method):
    """lambda / K^2 times the sum over h and k of ||grad f_h - grad f_k||^2."""

    lam: float = option(1e-2, "lambda, the weight of the penalty.", min=0)

    def penalty(self, step: Step) -> torch.Tensor:
        """The mean over the batch; K backward passes with a graph."""
        import torch

        with step.fixed() as forward:
            leaf = step.x.detach().requires_grad_(True)
            logits = forward(leaf)
            # the pairs' distances are 2 K times the spread of the rows around their mean
            centred = logits - logits.mean(1, keepdim=True)
            spread = torch.zeros((), dtype=logits.dtype, device=logits.device)
            for k in range(logits.shape[1]):
                (row,) = torch.autograd.grad(centred[:, k].sum(), leaf, create_graph=True)
                spread = spread + row.square().flatten(1).sum(1).mean()
        return self.lam * 2 / logits.shape[1] * spread

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constant."""
        return {"lambda": self.lam}


METHOD = TrainingMethod(
    name="cross-lipschitz",
    summary="Penalty on the differences of the logits' gradients.",
    source="simongabriel2019, eq. 17",
    options=CrossLipschitz,
)
