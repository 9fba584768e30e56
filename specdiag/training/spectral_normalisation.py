"""Spectral normalisation of the true layer operators (farnia2019 eq. 9, Algorithm 1), or of kernels (Miyato)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import TrainingMethod, option
from specdiag.training._method import Method

if TYPE_CHECKING:
    from specdiag.training._context import Run, State, Step
    from specdiag.training._layers import Layer


@dataclass(frozen=True, slots=True)
class SpectralNormalisation(Method):
    """After each step every weight W becomes W / max(1, sigma(W) / beta), or beta W / sigma(W).

    sigma comes from power iterations that go on from step to step, and from converged ones after the last
    step, so that the bound holds for the weights that are saved. BatchNorm scales what follows it anew: the
    bound on the whole network needs a network without it.
    """

    beta: float = option(1.0, "Bound on every layer's norm.", above=0)
    enforce: Literal["at-most", "equal"] = option(
        "at-most", "Only lower norms above beta, or set all to beta."
    )
    layer_norm: Literal["operator", "kernel"] = option(
        "operator", "The layer as it acts on its input, or its kernel reshaped to a matrix."
    )
    iterations: int = option(1, "Power iterations per step.", min=1)

    def initial_state(self, run: Run) -> State:
        """One right vector per layer."""
        from specdiag.training._layers import linear_layers, start_vectors

        return start_vectors(run, linear_layers(run, self.layer_norm))

    def weight_step(self, step: Step) -> None:
        """Scale every layer by what is known of its norm."""
        from specdiag.training._layers import linear_layers

        for layer in linear_layers(step.run, self.layer_norm):
            _, step.state[layer.name], sigma = layer.singular(step.state[layer.name], self.iterations)
            self._scale(layer, sigma)

    def last_weight_step(self, run: Run, state: State) -> None:
        """Scale every layer by its norm."""
        from specdiag.training._layers import linear_layers

        for layer in linear_layers(run, self.layer_norm):
            state[layer.name], sigma = layer.settled(state[layer.name])
            self._scale(layer, sigma)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """The constants."""
        return {"beta": self.beta, "enforce": self.enforce, "layer_norm": self.layer_norm}

    def _scale(self, layer: Layer, sigma: float) -> None:
        if sigma > 0 and (self.enforce == "equal" or sigma > self.beta):
            layer.weight.detach().mul_(self.beta / sigma)


METHOD = TrainingMethod(
    name="spectral-normalisation",
    summary="Every layer's spectral norm kept at or below beta.",
    source="farnia2019, eq. 9 and Algorithm 1",
    options=SpectralNormalisation,
)
