"""Global spectral norm regularisation: the squared norms of all layers (Yoshida and Miyato; roth2020 eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, State, Step


@dataclass(frozen=True, slots=True)
class GlobalSnr(Method):
    """(lambda / 2) times the sum over layers of sigma(W)^2, by power iterations kept from step to step."""

    lam: float = option(3e-4, "lambda, the weight of the penalty.", min=0)
    iterations: int = option(1, "Power iterations per step.", min=1)
    layer_norm: Literal["operator", "kernel"] = option(
        "operator", "The layer as it acts on its input, or its kernel reshaped to a matrix."
    )

    def initial_state(self, run: Run) -> State:
        """One right vector per layer."""
        from specdiag.training._layers import linear_layers, start_vectors

        return start_vectors(run, linear_layers(run, self.layer_norm))

    def penalty(self, step: Step) -> torch.Tensor:
        """The penalty, whose gradient in a layer is lambda sigma u v^T."""
        import torch

        from specdiag.training._layers import linear_layers

        layers = linear_layers(step.run, self.layer_norm)
        total = torch.zeros((), dtype=step.x.dtype, device=step.x.device)
        for layer in layers:
            u, v, _ = layer.singular(step.state[layer.name], self.iterations)
            step.state[layer.name] = v
            total = total + (u * layer.forward(v)).sum().square()
        return self.lam / 2 * total

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        return {"lambda": self.lam, "layer_norm": self.layer_norm}


METHOD = TrainingMethod(
    name="global-snr",
    summary="Penalty on the spectral norms of all layers.",
    source="roth2020, eq. 5 and 6",
    options=GlobalSnr,
)
