"""Fully connected networks with ReLU or ELU between the layers.

With activation=elu and one or two hidden layers of 512 these are the MLPs of farnia2019, 5.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from specdiag.errors import ArchitectureError
from specdiag.loading.networks._parts import activation_named


class Mlp(nn.Module):
    """Layers of the given sizes, inputs first and classes last; two sizes give a linear map.

    Inputs (N, sizes[0]), or anything that flattens to it; outputs (N, sizes[-1]).
    """

    def __init__(
        self, sizes: Sequence[int] = (64, 128, 10), bias: bool = True, activation: str = "relu"
    ) -> None:
        super().__init__()
        if (
            not isinstance(sizes, list | tuple)
            or len(sizes) < 2
            or any(isinstance(n, bool) or not isinstance(n, int) for n in sizes)
        ):
            raise ArchitectureError(
                f"sizes={sizes!r} is no list of layer sizes.", "Pass e.g. sizes=[64,128,10]."
            )
        self.activation = activation_named(activation)
        pairs = list(pairwise(sizes))
        self.hidden = nn.ModuleList(nn.Linear(inner, outer, bias=bias) for inner, outer in pairs[:-1])
        self.linear = nn.Linear(*pairs[-1], bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, sizes[-1])."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = self.activation(layer(x))
        logits: torch.Tensor = self.linear(x)
        return logits
