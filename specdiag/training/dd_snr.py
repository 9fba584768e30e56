"""Data-dependent spectral norm regularisation (roth2020 eq. 8 and 9)."""

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
class DdSnr(Method):
    """How far the logits move along the dominant right singular vector v of J(x).

    The form `difference` is (lambda / 2) ||f(x + eps v) - f(x)||^2 (eq. 9), `jacobian` is (lambda eps^2 / 2)
    (u^T J v)^2 (eq. 8); both have the same gradient where the ball lies inside the ReLU cell of x. v is found
    with BatchNorm in eval mode, the penalty is taken with its statistics of the batch.
    """

    lam: float = option(2e-2, "lambda, the weight of the penalty.", min=0)
    eps: float | Literal["auto"] = eps_option()
    iterations: int = option(10, "Power iterations per sample.", min=1)
    form: Literal["difference", "jacobian"] = option("difference", "Eq. 9 or eq. 8 of roth2020.")

    def penalty(self, step: Step) -> torch.Tensor:
        """The mean over the batch."""
        from specdiag.training._attack import radius
        from specdiag.training._jacobian import Linearised, dominant, unit

        eps = radius(step.run, self.eps, "l2")
        with step.run.evaluating(parameters=False) as forward:
            v = dominant(Linearised.at(forward, step.x), self.start(step), self.iterations)
        with step.fixed() as forward:
            if self.form == "jacobian":
                moved = Linearised.at(forward, step.x).forward(v, graph=True)
                # u = J v / ||J v|| (footnote 3), which u_k itself is only in the limit
                sigma = (unit(moved.detach()) * moved).sum(1)
                return self.lam * eps**2 / 2 * sigma.square().mean()
            moved = forward(step.x + eps * v) - forward(step.x)
            return self.lam / 2 * moved.square().sum(1).mean()

    def start(self, step: Step) -> torch.Tensor:
        """A random unit vector per sample, keyed by sample and epoch."""
        import torch

        from specdiag.training._jacobian import unit

        drawn = step.run.draws.normal(step.purpose("dd-snr"), step.index, tuple(step.x.shape[1:]))
        return unit(torch.from_numpy(drawn).to(step.x))

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants; eps is a length in the l2 norm."""
        from specdiag.training._attack import radius

        return {"norm": "l2", "eps": radius(run, self.eps, "l2"), "lambda": self.lam, "form": self.form}


METHOD = TrainingMethod(
    name="dd-snr",
    summary="Penalty on the spectral norm of the Jacobian at the training samples.",
    source="roth2020, eq. 7 to 9",
    options=DdSnr,
)
