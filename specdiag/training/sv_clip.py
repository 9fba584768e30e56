"""Singular values of every layer clipped at the end of each epoch (wen2020 B.4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    from specdiag.training._context import Run, Step


@dataclass(frozen=True, slots=True)
class SvClip(Method):
    """No singular value above `bound`: of matrices exactly, of convolutions as circular ones, up to the cropping."""

    bound: float = option(1.0, "Largest singular value; wen2020 has 1, 3 and 5.", above=0)

    def weight_step(self, step: Step) -> None:
        """Clip all layers after the last step of an epoch."""
        from specdiag.training._clip import clipped_kernel, clipped_matrix
        from specdiag.training._layers import linear_layers

        if not step.last:
            return
        for layer in linear_layers(step.run, "operator"):
            weight = layer.weight.detach()
            found = layer.convolution
            if found is None:
                weight.copy_(clipped_matrix(weight, self.bound))
            else:
                weight.copy_(clipped_kernel(weight, found.size, self.bound, found.groups))

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constant."""
        return {"bound": self.bound}


METHOD = TrainingMethod(
    name="sv-clip",
    summary="Singular values of every layer clipped after each epoch.",
    source="wen2020, B.4.2",
    options=SvClip,
)
