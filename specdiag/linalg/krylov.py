"""`krylov`: the largest singular values and vectors by Golub-Kahan-Lanczos, with its own stop.

One start vector per map: a block needs more products for the same digits. The price: of several equal singular
values only one is seen until rounding brings in the others, and of two very close ones, or where the start is
nearly orthogonal to a vector, one may come in only after the stop. `counts.Ranks` can prove that none is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from specdiag.errors import NumericalError
from specdiag.linalg.bidiagonal import Bidiagonalisation
from specdiag.linalg.operators import LinearOperator

Array = np.ndarray[Any, np.dtype[Any]]

_LAG = 3  # steps over which the rise of a Ritz value is taken
_CONFIRM = 2  # steps for which the stop must hold


@dataclass(frozen=True, slots=True, eq=False)
class Krylov:
    """The k largest singular values of each map, in falling order.

    values: (N, k) float64; left: (N, k, m) and right: (N, k, n) vectors; error: (N, k) estimated errors;
    pairs: (N,) products with A, and as many with A^T, until the errors were below the tolerance; converged: (N,).
    """

    values: Array
    left: torch.Tensor
    right: torch.Tensor
    error: Array
    pairs: Array
    converged: Array


def golub_kahan(
    operator: LinearOperator,
    k: int,
    start: torch.Tensor,
    tolerance: float = 1e-6,
    max_pairs: int = 300,
) -> Krylov:
    """The k largest singular values, each to `tolerance` of itself, or what `max_pairs` pairs of products give.

    start: (N, n) nonzero vectors, a row for each map of `operator`, or N starts for the same map. The stop is the
    error estimate residual^2 / gap (see `errors`); rows that are done go on until all are. Where m < n it takes
    one more product with A. Raises NumericalError, naming the row, for products that are not finite.
    """
    if operator.shape[0] < operator.shape[1]:
        # from the shorter side, so that the space is exhausted after min(m, n) steps
        found = golub_kahan(operator.T, k, operator.matmat(start), tolerance, max_pairs)
        return replace(found, left=found.right, right=found.left)
    return grow(Bidiagonalisation(operator, start), k, tolerance, max_pairs)


def grow(process: Bidiagonalisation, k: int, tolerance: float, max_pairs: int) -> Krylov:
    """As `golub_kahan`, going on with a process that has been begun; its operator must not be flat (m >= n)."""
    k = min(k, process.limit)
    limit = min(max(max_pairs, k, process.pairs + 1), process.limit)
    pairs, held = np.zeros(process.rows, int), np.zeros(process.rows, int)
    earlier: list[Array] = []
    while True:
        process.step()
        done = process.pairs
        if done < limit and done < k:
            continue
        bad = ~np.isfinite(process.alphas[:, -1] + process.betas[:, -1])
        if bad.any():
            raise NumericalError(
                f"The products of row {int(np.flatnonzero(bad)[0])} are not finite.",
                "Check that sample or layer.",
            )
        left, values, right = np.linalg.svd(process.matrix())
        residual = process.betas[:, -1:] * np.abs(left[:, -1])
        if done == process.limit:
            residual = np.zeros_like(residual)
        error = errors(values, residual, earlier[-_LAG] if len(earlier) >= _LAG else None)[:, :k]
        earlier.append(values)
        held = np.where(np.all(error <= tolerance * values[:, :k], axis=1), held + 1, 0)
        converged = held >= _CONFIRM
        pairs = np.where(converged & (pairs == 0), done, pairs)
        if converged.all() or done >= limit:
            break
    pairs = np.where(np.logical_and(converged, pairs > 0), pairs, done)
    return Krylov(
        values[:, :k],
        _combine(left[:, :, :k].swapaxes(1, 2), process.left),
        _combine(right[:, :k], process.right),
        error,
        pairs,
        np.asarray(converged),
    )


def errors(values: Array, residual: Array, earlier: Array | None = None) -> Array:
    """Errors of Ritz values (N, j), falling, from their residuals ||A^T u - sigma v|| (N, j).

    The residual itself always bounds the distance to some singular value. Where the neighbours leave a gap the
    error is of second order: that of sigma^2 is (sigma residual)^2 / gap of the squares. Ritz values rise as the
    space grows, so the neighbour below is moved up first: by three times what it rose since `earlier` (N, < j),
    or by its residual where that is less or where nothing earlier is known.
    """
    rise = residual.copy()
    if earlier is not None:
        known = earlier.shape[1]
        moved = 3 * (values[:, :known] - earlier)
        rise[:, :known] = np.minimum(rise[:, :known], np.maximum(moved, 0.0))
    squares = values**2
    ends = np.full((len(values), 1), np.inf)
    above = np.concatenate([ends, squares[:, :-1]], axis=1)
    below = np.concatenate([(values + rise)[:, 1:] ** 2, np.zeros_like(ends)], axis=1)
    gap = np.minimum(above - squares, squares - below)
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.where(gap > 0, (values * residual) ** 2 / gap / np.maximum(2 * values, 1e-300), np.inf)
    return np.asarray(np.minimum(residual, second) + np.finfo(np.float64).eps * values[:, :1])


def _combine(weights: Array, basis: torch.Tensor) -> torch.Tensor:
    factors = torch.from_numpy(np.ascontiguousarray(weights)).to(basis.device, basis.dtype)
    return torch.bmm(factors, basis)
