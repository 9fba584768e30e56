"""`quadrature`: sums over all singular values by stochastic Lanczos quadrature, for operators without structure.

Each random sign vector z starts one bidiagonalisation; its Gauss quadrature gives z^T f(A^T A) z, whose expectation
is the sum of f (Ubaru, Chen and Saad, 2017). The sum of squares is known exactly, so it serves as control
variate: what z^T A^T A z is off by tells part of what the estimate is off by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import xlogy

from specdiag.linalg.bidiagonal import Bidiagonalisation
from specdiag.linalg.estimate import Estimate, effective_rank
from specdiag.linalg.operators import LinearOperator

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Quadrature:
    """What the probes say.

    total: sum of the singular values, with an error of 2.5 standard errors over the probes (two, for as few as 16
    probes) plus what halving the steps changes; rank: their effective rank; values and weights: (N, steps) nodes
    of each probe, and weights that sum to 1.
    """

    total: Estimate
    rank: Estimate
    values: Array
    weights: Array


def lanczos(
    operator: LinearOperator, squares: float, probes: int = 16, steps: int = 64, seed: int = 0
) -> Quadrature:
    """Sum of the min(m, n) singular values, from `probes` sign vectors and `steps` pairs of products each.

    squares: the exact sum of the squared singular values.
    """
    if operator.shape[0] < operator.shape[1]:
        operator = operator.T
    n = operator.shape[1]
    signs = np.random.Generator(np.random.Philox(seed)).integers(0, 2, (probes, n)) * 2.0 - 1.0
    process = Bidiagonalisation(operator, torch.from_numpy(signs))
    for _ in range(min(steps, n)):
        process.step()
    values, weights = _nodes(process, process.pairs)
    total, error = _with_control(values, weights, n, squares)
    shorter, _ = _with_control(*_nodes(process, max(1, process.pairs // 2)), n, squares)
    # all steps there are leave no truncation to measure
    truncation = abs(total - shorter) if process.pairs < n else 0.0
    logs = n * (weights * xlogy(values, values)).sum(1)
    ranks = [
        effective_rank(float(a), float(b)) for a, b in zip(n * (weights * values).sum(1), logs, strict=True)
    ]
    spread = float(np.std(ranks, ddof=1)) / len(ranks) ** 0.5 if len(ranks) > 1 else float("inf")
    rank = Estimate(float(np.mean(ranks)), 2.5 * spread)
    return Quadrature(Estimate(total, 2.5 * error + truncation), rank, values, weights)


def _nodes(process: Bidiagonalisation, pairs: int) -> tuple[Array, Array]:
    _, values, right = np.linalg.svd(process.matrix(pairs))
    return values, right[:, :, 0] ** 2


def _with_control(values: Array, weights: Array, n: int, squares: float) -> tuple[float, float]:
    """Mean over the probes and its standard error, corrected by the squares, whose sum is known."""
    sums = n * (weights * values).sum(1)
    off = n * (weights * values**2).sum(1) - squares
    probes = len(sums)
    if probes < 4 or off.var() == 0.0:
        return float(sums.mean()), float(sums.std(ddof=1) / probes**0.5) if probes > 1 else float("inf")
    slope = float(((sums - sums.mean()) * (off - off.mean())).sum() / ((off - off.mean()) ** 2).sum())
    corrected = sums - slope * off
    spread = float(np.sqrt(((corrected - corrected.mean()) ** 2).sum() / (probes - 2)))
    return float(corrected.mean()), spread / probes**0.5
