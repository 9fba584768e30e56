"""Adversarial training: the loss at points found by projected gradient ascent (roth2020 eq. 10, 11)."""

from __future__ import annotations

from specdiag.schema import TrainingMethod
from specdiag.training._adversarial import Adversarial

METHOD = TrainingMethod(
    name="adversarial",
    summary="Adversarial training by projected gradient ascent in an l2 or linf ball.",
    source="roth2020, eq. 10 and 11",
    options=Adversarial,
)
