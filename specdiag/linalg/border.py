"""Determinants and inertia of a cut operator, from the border of the torus that it is cut out of.

With H(t) = [[t, A], [A^T, -t]] and the same for C on the torus, Jacobi's identity on complementary minors gives
log |det H_A| = log |det H_C| + log |det border(H_C^-1)|. With H(s) = [[-s, A], [A^T, -s]], Haynsworth's additivity of
inertia gives the number of singular values above s from the signs of the eigenvalues of border(H_C^-1). Both
hold exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from specdiag.linalg.torus import Green, Torus

Array = np.ndarray[Any, np.dtype[Any]]


def border_log_det(torus: Torus, t: float) -> float:
    """Sum of log(1 + sigma^2 / t^2) over A, minus the same over C: the log determinant of the border."""
    weight = 1 / (torus.values**2 + t * t)
    green = Green(t * t * weight, 1.0, t * torus.values * weight, -t * t * weight, -1.0)
    border = torus.border(green)
    total = float(np.einsum("kgb,k->", np.log(np.abs(border.eigenvalues)), torus.copies))
    return total + sum(_log_det(block, border.outputs) for block in border.schur)


def count_above(torus: Torus, s: float) -> int:
    """Number of singular values of A above s, all groups."""
    for _ in range(4):
        gap = torus.values**2 - s * s
        if np.abs(gap).min() <= 1e-13 * s * s:
            s *= 1 + 1e-12
            continue
        weight = 1 / gap
        border = torus.border(Green(s * weight, -1 / s, torus.values * weight, s * weight, -1 / s))
        size = np.abs(border.eigenvalues)
        if size.size == 0 or size.min() > 1e-11 * size.max():
            break
        # s sits on a singular value of the strip: the elimination has lost its digits there
        s *= 1 + 1e-11
    above = torus.sum(torus.values > s) - float(np.einsum("kgb,k->", border.eigenvalues > 0, torus.copies))
    return round(above) - sum(_positive(block) for block in border.schur)


def _log_det(block: Array, split: int) -> float:
    """Log |det| of a symmetric [[X, Y], [Y^T, -Z]], X and Z positive definite; `block` is its lower triangle.

    By two Cholesky factors, of X and of Z + Y^T X^-1 Y; in LAPACK's order the triangle is the upper one.
    """
    total = 0.0
    rest = -block[split:, split:].T
    if split:
        factor, info = lapack.dpotrf(block[:split, :split].T, lower=0, clean=0)
        if info:
            return _by_lu(block)
        total += 2 * float(np.log(np.diag(factor)).sum())
        if len(rest):
            side = blas.dtrsm(1.0, factor, block[split:, :split].T, lower=0, trans_a=1)
            rest = blas.dsyrk(1.0, side, 1.0, np.asfortranarray(rest), trans=1, lower=0, overwrite_c=1)
    if len(rest):
        factor, info = lapack.dpotrf(rest, lower=0, clean=0)
        if info:
            return _by_lu(block)
        total += 2 * float(np.log(np.diag(factor)).sum())
    return total


def _by_lu(block: Array) -> float:
    return float(np.linalg.slogdet(np.tril(block) + np.tril(block, -1).T)[1])


def _positive(block: Array) -> int:
    """Number of positive eigenvalues of a symmetric matrix, given its lower triangle, by LDL^T."""
    if len(block) == 0:
        return 0
    work, _ = lapack.dsytrf_lwork(len(block), lower=0)
    factor, pivots, _ = lapack.dsytrf(block.T, lower=0, lwork=int(work), overwrite_a=1)
    alone = pivots > 0
    # a 2 x 2 pivot is indefinite: one eigenvalue of each sign
    return int(np.count_nonzero(np.diag(factor)[alone] > 0) + np.count_nonzero(~alone) // 2)
