"""`power`: the largest singular value by the power method.

One loop serves roth2020 eq. 5 (the operator of a layer), eq. 7 (Jacobians, one per sample) and farnia2019
Algorithm 1 (a convolution with its stride and padding, and its transpose): all three are
u = A v / ||A v||, v = A^T u / ||A^T u||, sigma = u^T A v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specdiag.errors import NumericalError
from specdiag.linalg.operators import LinearOperator

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Power:
    """values: (N, steps) float64, sigma after each step; left: (N, m) and right: (N, n) unit vectors after the last.

    change: (N,) relative change in the last step. It is no error bound: where the two largest singular values
    are close, sigma moves slowly long before it is right.
    """

    values: Array
    left: torch.Tensor
    right: torch.Tensor
    change: Array


def power_method(operator: LinearOperator, start: torch.Tensor, steps: int, tolerance: float = 0.0) -> Power:
    """`steps` iterations from `start` (N, n); fewer once sigma changes by less than `tolerance` in every row.

    Raises NumericalError, naming the row, where a product is zero or not finite.
    """
    v = start.to(operator.device, operator.dtype)
    v = _unit(v, "start")
    history: list[torch.Tensor] = []
    u = v
    for _ in range(max(1, steps)):
        u = _unit(operator.matmat(v), "product")
        pulled = operator.rmatmat(u)
        # sigma = u^T A v with the new v = A^T u / ||A^T u|| is the length of A^T u
        history.append(torch.linalg.vector_norm(pulled, dim=1).double())
        v = _unit(pulled, "product")
        if len(history) > 1 and tolerance > 0:
            moved = (history[-1] - history[-2]).abs() / history[-1]
            if bool((moved < tolerance).all()):
                break
    values = torch.stack(history, dim=1).cpu().numpy()
    last = values[:, -2] if values.shape[1] > 1 else np.zeros(len(values))
    return Power(values, u, v, np.abs(values[:, -1] - last) / values[:, -1])


def _unit(x: torch.Tensor, what: str) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=1)
    bad = ~(torch.isfinite(length) & (length > 0))
    if bool(bad.any()):
        raise NumericalError(
            f"The power method met a {what} that is zero or not finite in row {int(bad.nonzero()[0])}.",
            "The map may be zero there; start from another vector.",
        )
    return x / length[:, None]
