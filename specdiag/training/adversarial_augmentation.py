"""Adversarially augmented training: the mean of the loss at x and at one gradient step (simongabriel2019 eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._adversarial import Adversarial
from specdiag.training._attacked import Objective, objective_option


@dataclass(frozen=True, slots=True)
class Augmented(Adversarial):
    """(L(x) + L(x + delta)) / 2 with delta of norm eps that raises the loss most to first order."""

    norm: Literal["l2", "linf"] = option("linf", "Norm of the perturbation.")
    steps: int = option(1, "Attack iterations.", min=1)
    objective: Objective = objective_option("mix")
    start: Literal["random", "clean"] = option("clean", "First point: uniform in the ball, or the clean one.")


METHOD = TrainingMethod(
    name="adversarial-augmentation",
    summary="Mean of clean loss and loss after one gradient step.",
    source="simongabriel2019, eq. 5",
    options=Augmented,
)
