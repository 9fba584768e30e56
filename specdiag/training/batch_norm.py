"""Batch normalisation, as a control: the architecture with its normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdiag.schema import TrainingMethod
from specdiag.training._method import Method


@dataclass(frozen=True, slots=True)
class BatchNorm(Method):
    """Standard training of the architecture with `norm=batch`; it must be one that takes this argument."""

    def arch_args(self) -> Mapping[str, Any]:
        """The argument."""
        return {"norm": "batch"}


METHOD = TrainingMethod(
    name="batch-norm",
    summary="Control: the architecture with batch normalisation.",
    source="farnia2019, A.2",
    options=BatchNorm,
)
