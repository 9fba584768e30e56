"""Attacks with a graph: the perturbation as a function of the weights (simongabriel2019 appendix F)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from specdiag.attacks._ball import Norm


def ascend(
    forward: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    alpha: float,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Projected gradient ascent on the cross-entropy whose result (N, *input shape) has a graph to the weights.

    start: offsets at which to begin. The sign of linf has derivative zero, so for linf only the projection
    and the loss at the result carry gradients: it equals the usual attack.
    """
    here = (x if start is None else x + start).detach().requires_grad_(True)
    for _ in range(steps):
        loss = F.cross_entropy(forward(here).double(), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
        direction = gradient.sign() if norm == "linf" else gradient / _length(gradient)
        offset = here + alpha * direction - x
        if norm == "linf":
            here = x + offset.clamp(-eps, eps)
        else:
            here = x + offset * (eps / _length(offset)).clamp(max=1)
    return here


def _length(x: torch.Tensor) -> torch.Tensor:
    length = torch.linalg.vector_norm(x.flatten(1), dim=1)
    tiny = torch.finfo(x.dtype).tiny
    shaped: torch.Tensor = length.clamp_min(tiny).reshape(-1, *([1] * (x.ndim - 1)))
    return shaped
