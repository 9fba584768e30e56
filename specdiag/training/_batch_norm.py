"""BatchNorm that keeps the statistics of one batch while other points go through the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# mean and variance of each call of each layer, with a graph to the weights
Statistics = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


@contextmanager
def recorded(network: nn.Module) -> Iterator[Statistics]:
    """Collect the batch statistics of every BatchNorm in training mode that runs inside the block."""
    found: Statistics = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            x = inputs[0]
            dims = [axis for axis in range(x.ndim) if axis != 1]
            variance, mean = torch.var_mean(x, dims, correction=0)
            found.setdefault(name, []).append((mean, variance))

        return hook

    layers = {name: layer for name, layer in _layers(network).items() if layer.training}
    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(network: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Let every BatchNorm with recorded statistics use them, call by call in the recorded order."""

    def replace(name: str) -> Any:
        calls = 0

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            mean, variance = statistics[name][calls % len(statistics[name])]
            calls += 1
            shape = (1, -1) + (1,) * (inputs[0].ndim - 2)
            scale = torch.rsqrt(variance + module.eps)
            if module.weight is not None:
                scale = scale * module.weight
            shift = -mean * scale
            if module.bias is not None:
                shift = shift + module.bias
            moved: torch.Tensor = inputs[0] * scale.reshape(shape) + shift.reshape(shape)
            return moved

        return hook

    layers = _layers(network)
    handles = [layers[name].register_forward_hook(replace(name)) for name in statistics]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    kind = nn.modules.batchnorm._BatchNorm
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}
