"""DeepFool: a short way over the nearest decision boundary (Moosavi-Dezfooli et al. 2016; roth2018 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.schema import Attack, option

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._gradient import Observe, Outcome
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class DeepFool:
    """Steps to the nearest boundary of the linearised network until the answer changes; it has no eps."""

    steps: int = _options.steps(50)
    candidates: int = option(10, "How many classes with the largest logits are tried.", min=2)
    overshoot: float = option(0.02, "How far beyond the boundary, relative to the perturbation.", min=0)
    label: Literal["true", "predicted"] = _options.label()
    clip: bool = _options.clip()

    def run(
        self, model: Model, batch: Batch, *, stop: bool = False, observe: Observe | None = None
    ) -> Outcome:
        """The attack with its details; it always stops at the first success, and `observe` is not called."""
        from specdiag.attacks._boundary import deepfool

        return deepfool(self, model, batch)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        return self.run(model, batch).x


ATTACK = Attack(
    name="deepfool",
    summary="A short way over the nearest decision boundary; no eps.",
    source="Moosavi-Dezfooli et al. 2016; roth2018, 7.2",
    options=DeepFool,
    norm=None,
)
