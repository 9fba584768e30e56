"""Dropout, as a control for the methods that act on the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    from specdiag.training._context import Run


@dataclass(frozen=True, slots=True)
class Dropout(Method):
    """Inputs of layers zeroed at random while training; the weights keep their names."""

    rate: float = option(0.5, "Share of the inputs that is dropped.", min=0, max=0.99)
    layers: Literal["last", "all"] = option(
        "last", "Before the last linear layer, or before all but the first."
    )

    def prepare(self, run: Run) -> None:
        """Hook the layers' inputs."""
        from torch.nn import functional as F

        from specdiag.training._layers import linear_layers

        def drop(module: Any, inputs: Any) -> Any:
            return (F.dropout(inputs[0], self.rate, training=module.training), *inputs[1:])

        found = linear_layers(run, "operator")
        for layer in found[1:] if self.layers == "all" else found[-1:]:
            run.network.get_submodule(layer.name).register_forward_pre_hook(drop)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        return {"rate": self.rate, "layers": self.layers}


METHOD = TrainingMethod(
    name="dropout",
    summary="Control: dropout before the last or all layers.",
    source="farnia2019, A.2",
    options=Dropout,
)
