"""Weight decay, as a control for the methods that act on the function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    from specdiag.training._context import Run
    from specdiag.training._settings import Settings


@dataclass(frozen=True, slots=True)
class WeightDecay(Method):
    """(lambda / 2) times the squares of all parameters, by the optimiser."""

    lam: float = option(5e-3, "lambda, in place of the usual weight decay.", min=0)

    def adjust(self, settings: Settings) -> Settings:
        """The settings with this decay."""
        return dataclasses.replace(settings, weight_decay=self.lam)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constant."""
        return {"lambda": self.lam}


METHOD = TrainingMethod(
    name="weight-decay",
    summary="Control: strong weight decay.",
    source="roth2018, 4.1; farnia2019, A.2",
    options=WeightDecay,
)
