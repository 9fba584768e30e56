"""`exact`: every singular value from a dense matrix, through the Gram matrix where that is accurate."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from specdiag.errors import NumericalError
from specdiag.linalg.stencil import Stencil

Array = np.ndarray[Any, np.dtype[Any]]

PROMISE = 1e-8
"""Largest error of a singular value, relative to the largest one."""

_RATE = 8.5e9
"""Side^3 per second of one Gram eigenvalue problem on one core (EPYC Zen 4, OpenBLAS), for estimates."""

_SPARSE, _DENSE = 7e8, 2.2e10
"""Products per second in a sparse Gram matrix, and in a dense one."""


def cost(stencil: Stencil) -> tuple[int, float]:
    """(bytes, seconds) that `singular_values` needs, roughly, on one core."""
    sides = [(min(part.shape) // part.groups, part.groups) for part, _ in stencil.split()]
    largest = max((side for side, _ in sides), default=0)
    return 24 * largest**2, sum(groups * side**3 for side, groups in sides) / _RATE


def singular_values(stencil: Stencil, memory: float | None = None, refine: bool = True) -> Array:
    """All min(m, n) singular values in falling order, each to 1e-8 of the largest.

    Without `refine` the small end is left as the Gram matrix has it, off by up to 1e-7 of the largest. Raises
    NumericalError with the bytes and the time where `memory` bytes are not enough.
    """
    size, seconds = cost(stencil)
    if memory is not None and size > memory:
        raise NumericalError(
            f"All {stencil.count} singular values need {size / 1e9:.1f} GB and about {seconds:.0f} s.",
            "Choose another method, or allow more memory.",
        )
    found = []
    for part, copies in stencil.split():
        for group in range(part.groups):
            found.append(np.repeat(of_matrix(part.sparse(group), refine), copies))
    values = np.concatenate([*found, np.zeros(stencil.count - sum(map(len, found)))])
    return np.sort(values)[::-1]


def of_matrix(matrix: Any, refine: bool = True) -> Array:
    """All min(m, n) singular values of a dense or sparse matrix, falling, each to 1e-8 of the largest.

    Gram eigenvalues first (several times faster than a dense SVD); their error grows as 1/sigma, so where the
    smallest one is too small for it, the small end is computed again from the matrix itself.
    """
    sparse = scipy.sparse.issparse(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    side = matrix.shape[1]
    if side == 0:
        return np.zeros(0)
    values, _, info = scipy.linalg.lapack.dsyevd(_gram(matrix), compute_v=0, lower=1, overwrite_a=1)
    if info != 0:
        raise NumericalError(
            "The eigenvalues of a Gram matrix did not converge.", "Check the weights for huge values."
        )
    largest = float(values[-1])
    sigma = np.sqrt(np.maximum(values, 0.0))
    doubtful = int(np.count_nonzero(sigma < gram_limit(side, PROMISE / 4) * np.sqrt(largest)))
    if doubtful == 0 or not refine:
        return np.asarray(sigma[::-1])
    if side <= 512 or doubtful > side // 8:
        whole = matrix.toarray() if sparse else matrix
        return np.asarray(scipy.linalg.svdvals(whole, check_finite=False))
    _, vectors = scipy.linalg.eigh(
        _gram(matrix), subset_by_index=[0, doubtful - 1], overwrite_a=True, check_finite=False
    )
    sigma[:doubtful] = np.sort(scipy.linalg.svdvals(matrix @ vectors, check_finite=False))
    return np.sort(sigma)[::-1]


def _gram(matrix: Any) -> Array:
    """A^T A, whose lower triangle alone is filled, in LAPACK's order; (m, n) dense or sparse -> (n, n)."""
    rows, side = matrix.shape
    if scipy.sparse.issparse(matrix):
        if matrix.nnz**2 / max(rows, 1) / _SPARSE < side * side * rows / _DENSE:
            # a symmetric matrix is its transpose, which LAPACK takes without a copy
            return np.asarray((matrix.T @ matrix).toarray().T)
        matrix = matrix.toarray()
    # the transpose of an array in C order is one in Fortran order
    if matrix.flags.c_contiguous:
        return np.asarray(scipy.linalg.blas.dsyrk(1.0, matrix.T, trans=0, lower=1))
    return np.asarray(scipy.linalg.blas.dsyrk(1.0, matrix, trans=1, lower=1))


def value_errors(values: Array, side: int, relative: float = 0.0, absolute: float = PROMISE) -> Array:
    """Errors of singular values, falling, that come from Gram matrices of side `side` and a fallback for small ones.

    The fallback is right to `relative` of each value and `absolute` of the largest.
    """
    if len(values) == 0:
        return values
    top = float(values[0])
    floor = relative * values + absolute * top
    with np.errstate(divide="ignore"):
        gram = (
            2 * np.sqrt(side) * np.finfo(np.float64).eps * top**2 / values if top else np.zeros_like(values)
        )
    return np.asarray(np.minimum(np.maximum(gram, 1e-15 * top), floor))


def gram_limit(side: int, tolerance: float) -> float:
    """Ratio sigma / sigma_max below which sqrt(eig(A^T A)) may be off by more than `tolerance` * sigma_max.

    From |d lambda| <= 4 sqrt(side) eps lambda_max and d sigma = d lambda / (2 sigma).
    """
    return float(2 * np.sqrt(side) * np.finfo(np.float64).eps / tolerance)
