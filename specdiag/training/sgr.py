"""Structured gradient regularisation: the loss gradient weighed by the covariance of perturbations (roth2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.errors import UsageError
from specdiag.schema import TrainingMethod, option
from specdiag.training._attacked import eps_option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, State, Step


@dataclass(frozen=True, slots=True)
class Sgr(Method):
    """(lambda / 2) E[g^T Sigma g], g = grad_x log p_y (eq. 11).

    Sigma is the running average (eq. 14) of the second moments of perturbations of the batches, scaled to
    the mean variance of the data's values (3.3), so that lambda is a noise-to-signal ratio.
    """

    lam: float = option(0.1, "lambda, the weight of the penalty.", min=0)
    source: Literal["pgd", "fgsm", "gradient", "sign", "lrc"] = option(
        "pgd",
        "What Sigma is taken of: linf attacks of several or one step, loss gradients, or their signs; lrc: it is that "
        "of long-range correlated noise.",
    )
    covariance: Literal["full", "function"] = option(
        "full", "Sigma as a matrix (eq. 15), or as a function of pixel displacement (eq. 16)."
    )
    decay: float = option(0.9, "Weight of the past in the running average.", min=0, max=1)
    eps: float | Literal["auto"] = eps_option()
    steps: int = option(10, "Iterations of the pgd source.", min=1)
    decay_length: float = option(3.0, "Pixels over which the lrc source's covariance falls to 1/e.", above=0)
    channel_factor: float = option(
        0.5, "Its covariance between two channels over that within one.", min=0, max=1
    )

    def initial_state(self, run: Run) -> State:
        """Sigma before the first batch, and the data's mean variance."""
        import torch

        if run.samples is None:
            raise TypeError("sgr needs the training samples")
        if self.covariance == "function" and len(run.input_shape) != 3:
            raise UsageError("Pixel displacement needs images.", "Pass --covariance full.")
        variance = run.samples.x.double().var(0, correction=0).mean()
        moments = self.noise_moments(run) if self.source == "lrc" else torch.zeros(0)
        return {"moments": moments.to(run.device), "data": variance.float().to(run.device)}

    def penalty(self, step: Step) -> torch.Tensor:
        """The mean over the batch, after Sigma has taken the batch in."""
        from specdiag.training import _covariance as moments

        function = self.covariance == "function"
        averaged = step.state["moments"]
        if self.source != "lrc":
            delta = self.perturbations(step)
            new = moments.displacement_moments(delta) if function else moments.full_moments(delta)
            averaged = new if averaged.numel() == 0 else self.decay * averaged + (1 - self.decay) * new
            step.state["moments"] = averaged
        size = moments.mean_diagonal(averaged).clamp_min(1e-30)
        sigma = averaged * (step.state["data"] / size)
        with step.fixed() as forward:
            gradients = step.loss_gradients(step.x, forward)
        times = moments.times_displacement if function else moments.times_full
        return self.lam / 2 * (gradients * times(sigma, gradients)).flatten(1).sum(1).mean()

    def noise_moments(self, run: Run) -> torch.Tensor:
        """Sigma of the `lrc` source, (D, D), which the attack of that name draws from."""
        import torch

        from specdiag.attacks._correlated import exponential_root

        if self.covariance == "function":
            raise UsageError("The lrc source is a full matrix.", "Pass --covariance full.")
        root = exponential_root(run.input_shape, self.decay_length, self.channel_factor)
        rows = root.times(torch.eye(root.size, dtype=torch.float64))
        return (rows.T @ rows).float()

    def perturbations(self, step: Step) -> torch.Tensor:
        """What Sigma is taken of, (N, *input shape), without a graph."""
        from specdiag.training._attack import perturb, radius

        if self.source in ("gradient", "sign"):
            with step.run.evaluating(parameters=False) as forward:
                gradients = step.loss_gradients(step.x, forward).detach()
            return gradients.sign() if self.source == "sign" else gradients
        eps = radius(step.run, self.eps, "linf")
        values = {"eps": eps} if self.source == "fgsm" else {"eps": eps, "steps": self.steps}
        return perturb(step, "fgsm" if self.source == "fgsm" else "pgd-linf", values, "sgr") - step.x

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        facts = {
            "lambda": self.lam,
            "source": self.source,
            "covariance": self.covariance,
            "decay": self.decay,
        }
        if self.source != "lrc":
            return facts
        return {**facts, "decay_length": self.decay_length, "channel_factor": self.channel_factor}


METHOD = TrainingMethod(
    name="sgr",
    summary="Penalty on the loss gradient weighed by the covariance of perturbations.",
    source="roth2018, eq. 11 to 16",
    options=Sgr,
)
