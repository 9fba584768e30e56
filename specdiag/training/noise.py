"""Training on samples with independent Gaussian noise, as a control for adversarial perturbations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._attacked import Attacked, Objective, objective_option, weight_option

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class Noise(Attacked):
    """x* = x + deviation times standard normal numbers, drawn anew in each epoch."""

    deviation: float = option(0.1, "Standard deviation of each value, in data units.", above=0)
    objective: Objective = objective_option("only")
    attack_weight: float | Literal["auto"] = weight_option()

    def perturb(self, step: Step) -> torch.Tensor:
        """The noisy batch."""
        import torch

        drawn = step.run.draws.normal(step.purpose("noise"), step.index, tuple(step.x.shape[1:]))
        return step.x + self.deviation * torch.from_numpy(drawn).to(step.x)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        return {"deviation": self.deviation, **self.objective_facts()}


METHOD = TrainingMethod(
    name="noise",
    summary="Control: training on samples with Gaussian noise.",
    source="simongabriel2019, section 2; roth2018, 4.1",
    options=Noise,
)
