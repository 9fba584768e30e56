"""The linear layers of the network in training as operators, and their power iteration (farnia2019, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from specdiag.errors import ModelError
from specdiag.linalg.layers import Convolution, from_module
from specdiag.training._context import Run, State

NormKind = Literal["operator", "kernel"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SETTLED, MOST = 1e-7, 2000


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One linear or convolutional layer.

    convolution: the operator at the size of its input, sharing the weight's memory; None where the weight
    itself is taken as a matrix (linear layers, or the reshaped kernel of Yoshida and Miyato).
    """

    name: str
    weight: nn.Parameter
    convolution: Convolution | None = None

    @property
    def start_shape(self) -> tuple[int, ...]:
        """Shape of one input vector."""
        if self.convolution is None:
            return (self.weight[0].numel(),)
        return (1, self.convolution.channels[0], *self.convolution.size)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """W v, with a graph to the weight where one is being recorded."""
        if self.convolution is None:
            return self.weight.flatten(1) @ v
        return replace(self.convolution, weight=self.weight).forward(v)

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """W^T u."""
        if self.convolution is None:
            return self.weight.flatten(1).T @ u
        return self.convolution.backward(u)

    def singular(self, v: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """u, v and sigma after `iterations` of eq. 5 (roth2020) from v; nothing is recorded."""
        with torch.no_grad():
            u, sigma = v, 0.0
            for _ in range(iterations):
                u = _unit(self.forward(v))
                v = _unit(self.adjoint(u))
            sigma = float((u * self.forward(v)).sum())
        return u, v, sigma

    def settled(self, v: torch.Tensor) -> tuple[torch.Tensor, float]:
        """V and sigma where one more iteration no longer changes sigma by 1e-7 of itself, in float64."""
        precise = replace(self, weight=nn.Parameter(self.weight.detach().double(), requires_grad=False))
        if self.convolution is not None:
            precise = replace(precise, convolution=replace(self.convolution, weight=precise.weight.detach()))
        # a start that is no longer random may be orthogonal to the first vector
        vector, before = _unit(v.double() + 1e-3 * _unit(torch.ones_like(v, dtype=torch.float64))), 0.0
        for _ in range(MOST // 10):
            _, vector, sigma = precise.singular(vector, 10)
            if abs(sigma - before) <= SETTLED * sigma:
                break
            before = sigma
        return vector.to(v.dtype), sigma


def linear_layers(run: Run, kind: NormKind) -> list[Layer]:
    """Every linear and convolutional layer that a sample passes, in order; each module once. Found once per run.

    kind `operator`: the layer as it acts on its input; `kernel`: its weight reshaped to (outputs, rest).
    Raises ModelError where the network has none.
    """
    if kind in run.layers:
        found: list[Layer] = run.layers[kind]
        return found
    sizes: dict[str, tuple[int, ...]] = {}
    handles = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            sizes.setdefault(name, tuple(inputs[0].shape[2:]))

        return hook

    for name, module in run.network.named_modules():
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            handles.append(module.register_forward_hook(record(name)))
    try:
        with torch.no_grad(), run.evaluating(parameters=False) as forward:
            forward(torch.full((1, *run.input_shape), 0.5, device=run.device, dtype=_dtype(run)))
    finally:
        for handle in handles:
            handle.remove()
    if not sizes:
        raise ModelError("The network has no linear or convolutional layer.", "Choose another method.")
    layers: list[Layer] = []
    for name, size in sizes.items():
        module = run.network.get_submodule(name)
        weight = module.weight
        if not isinstance(weight, nn.Parameter):
            raise ModelError(f"The weight of layer '{name}' is no parameter.", "Choose another method.")
        as_operator = kind == "operator" and isinstance(module, CONVOLUTIONS)
        layers.append(Layer(name, weight, from_module(module, size) if as_operator else None))
    run.layers[kind] = layers
    return layers


def start_vectors(run: Run, layers: list[Layer]) -> State:
    """A random unit vector for each layer, keyed by the seed and the layer's name."""
    vectors = {}
    for layer in layers:
        drawn = run.draws.shared_normal(f"train/power/{layer.name}", layer.start_shape)
        vector = torch.from_numpy(drawn).to(device=run.device, dtype=layer.weight.dtype)
        vectors[layer.name] = _unit(vector)
    return vectors


def _unit(x: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)
    return unit


def _dtype(run: Run) -> torch.dtype:
    return next(run.network.parameters()).dtype
