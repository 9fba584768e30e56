"""Training on samples with long-range correlated Gaussian noise, the baseline of roth2018 4.3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._attacked import Attacked, Objective, eps_option, objective_option, weight_option

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._correlated import Root
    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class LrcAugmented(Attacked):
    """x* = x + noise whose values at near pixels are alike, drawn anew in each epoch.

    E ||noise||_2^2 = eps^2; its covariance is exp(-r / decay_length) for pixels at distance r, or that of the
    training samples.
    """

    eps: float | Literal["auto"] = eps_option()
    noise_covariance: Literal["exponential", "data"] = option(
        "exponential", "Of the noise: exponential in the pixel distance, or that of the training samples."
    )
    decay_length: float = option(3.0, "Pixels over which the exponential covariance falls to 1/e.", above=0)
    channel_factor: float = option(
        0.5, "Exponential covariance between two channels over that within one.", min=0, max=1
    )
    objective: Objective = objective_option("only")
    attack_weight: float | Literal["auto"] = weight_option()

    def prepare(self, run: Run) -> None:
        """Make the root of the covariance before the first step."""
        run.kept["lrc"] = self._root(run)

    def perturb(self, step: Step) -> torch.Tensor:
        """The noisy batch."""
        import torch

        from specdiag.training._attack import radius

        run = step.run
        root: Root = run.kept["lrc"]
        drawn = torch.from_numpy(run.draws.normal(step.purpose("lrc"), step.index, (root.size,)))
        noise = root.times(drawn).reshape(step.x.shape).to(step.x)
        moved: torch.Tensor = step.x + radius(run, self.eps, "l2") / root.size**0.5 * noise
        return moved

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        from specdiag.training._attack import radius

        constants = {
            "norm": "l2",
            "eps": radius(run, self.eps, "l2"),
            "noise_covariance": self.noise_covariance,
            "decay_length": self.decay_length,
            "channel_factor": self.channel_factor,
        }
        return {**constants, **self.objective_facts()}

    def _root(self, run: Run) -> Root:
        from specdiag.attacks._correlated import data_root, exponential_root

        if self.noise_covariance == "exponential":
            return exponential_root(run.input_shape, self.decay_length, self.channel_factor)
        if run.samples is None:
            raise TypeError("the covariance of the data needs the training samples")
        return data_root(run.samples.x)


METHOD = TrainingMethod(
    name="lrc-augmented",
    summary="Control: training on samples with long-range correlated noise.",
    source="roth2018, 4.3",
    options=LrcAugmented,
)
