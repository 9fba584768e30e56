"""How many activations are on, layer by layer, and how the weights vary (simongabriel2019 H1, H3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from specdiag.analyzers._operators import LINEAR
from specdiag.kinks import KINKS
from specdiag.model import Model

Array = np.ndarray[Any, np.dtype[Any]]


class _Active(TorchFunctionMode):
    """Collects per kinked function the share of its inputs above the kink at zero, under the last layer's name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.shares: list[torch.Tensor] = []
        self.layer = "input"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in KINKS and 0.0 in KINKS[name] and isinstance(args[0], torch.Tensor):
            self.shares.append((args[0].detach() > 0).flatten(1).double().mean(1))
            earlier = sum(known.partition("#")[0] == self.layer for known in self.names)
            self.names.append(self.layer if not earlier else f"{self.layer}#{earlier + 1}")
        return func(*args, **(kwargs or {}))


def active_shares(model: Model, x: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """Share of positive inputs of each ReLU-like function, (N, A), and the linear layer before each."""
    mode = _Active()
    handles = []

    def entered(path: str) -> None:
        mode.layer = path

    for path, module in model.fast.named_modules():
        if isinstance(module, LINEAR):
            handles.append(module.register_forward_hook(lambda m, i, o, path=path: entered(path)))
    try:
        with torch.no_grad(), mode:
            model.forward(x)
    finally:
        for handle in handles:
            handle.remove()
    shares = torch.stack(mode.shares, 1) if mode.shares else x.flatten(1)[:, :0].double()
    return mode.names, shares


def weight_variances(network: nn.Module) -> tuple[list[str], Array]:
    """Variance of each linear layer's weights over He's 2 / fan-in, (L,): 1 at He initialisation."""
    names, ratios = [], []
    for path, module in network.named_modules():
        if isinstance(module, LINEAR):
            weight: Any = module.weight
            transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
            taps = math.prod(weight.shape[2:])
            inputs = weight.shape[0] // module.groups if transposed else weight.shape[1]
            names.append(path)
            ratios.append(float(weight.detach().double().var(correction=0)) * int(inputs) * taps / 2)
    return names, np.array(ratios)
