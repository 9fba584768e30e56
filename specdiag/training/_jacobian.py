"""The power method on the Jacobian of a network in training (roth2020 eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(slots=True, eq=False)
class Linearised:
    """f(x), J v and J^T u for a batch, from one forward pass.

    J v is the derivative of the linear map u -> J^T u, so that no pass in forward mode is needed.
    """

    outputs: torch.Tensor
    leaf: torch.Tensor
    _dual: torch.Tensor
    _pulled: torch.Tensor

    @classmethod
    def at(cls, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Linearised:
        """The network at x (N, *input shape)."""
        leaf = x.detach().requires_grad_(True)
        outputs = forward(leaf)
        dual = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, leaf, dual, create_graph=True)
        return cls(outputs, leaf, dual, pulled)

    def forward(self, v: torch.Tensor, graph: bool = False) -> torch.Tensor:
        """J v, (N, K); with `graph` differentiable in the weights."""
        return torch.autograd.grad(self._pulled, self._dual, v, retain_graph=True, create_graph=graph)[0]

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u, (N, *input shape)."""
        return torch.autograd.grad(self.outputs, self.leaf, u, retain_graph=True)[0]


def dominant(at: Linearised, v: torch.Tensor, iterations: int) -> torch.Tensor:
    """The right vectors v (N, *input shape) after `iterations` of eq. 7 from v; zero where J is zero."""
    for _ in range(iterations):
        u = unit(at.forward(v))
        v = unit(at.adjoint(u))
    return v.detach()


def unit(x: torch.Tensor) -> torch.Tensor:
    """Each sample's values scaled to norm 1; zero stays zero."""
    length = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    scaled: torch.Tensor = x / length.reshape(-1, *([1] * (x.ndim - 1)))
    return scaled
