"""Standard training: cross-entropy on the samples as they are."""

from __future__ import annotations

from dataclasses import dataclass

from specdiag.schema import TrainingMethod
from specdiag.training._method import Method


@dataclass(frozen=True, slots=True)
class Standard(Method):
    """It has no options of its own."""


METHOD = TrainingMethod(
    name="standard",
    summary="Cross-entropy on clean samples.",
    source="roth2020, 5.1",
    options=Standard,
)
