"""Training on the projected gradient method's perturbations (PGM, farnia2019 eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._adversarial import Adversarial
from specdiag.training._attacked import Objective, objective_option


@dataclass(frozen=True, slots=True)
class Pgm(Adversarial):
    """Adversarial training as farnia2019 has it: 15 steps of 2 eps / 15 from the clean point, attacked loss alone."""

    steps: int = option(15, "Attack iterations.", min=1)
    objective: Objective = objective_option("only")
    start: Literal["random", "clean"] = option("clean", "First point: uniform in the ball, or the clean one.")


METHOD = TrainingMethod(
    name="pgm",
    summary="Training on projected gradient perturbations from the clean point.",
    source="farnia2019, eq. 4 and 6",
    options=Pgm,
)
