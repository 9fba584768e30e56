"""`cut`: sums, counts and quantiles of the singular values of a zero-padded convolution, without its matrix.

With M(t) = [[t, A], [-A^T, t]] and C the operator on the torus that A is cut out of, Jacobi's identity on
complementary minors gives log det M_A(t) - log det M_C(t) = log |det border(M_C(t)^-1)|, and the integral
sum sigma = (1 / pi) int_0^inf sum log(1 + sigma^2 / t^2) dt turns it into the sum of the singular values. With
M(s) = [[-s, A], [A^T, -s]], Haynsworth's additivity of inertia gives the number of singular values above s from
the signs of the eigenvalues of border(M_C(s)^-1). Both hold exactly; the integral is the only error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from specdiag.errors import NumericalError
from specdiag.linalg import workers as threads
from specdiag.linalg.stencil import Stencil
from specdiag.linalg.torus import Green, Torus

Array = np.ndarray[Any, np.dtype[Any]]

_BATCH = 4 << 20  # entries of all groups' border matrices in one piece of work


class Cut:
    """One zero-padded (or unpadded) stencil, ready for sums and counts.

    Raises NumericalError for a circular stencil, which needs no cut, and for weights that are not finite.
    """

    def __init__(self, stencil: Stencil, workers: int | None = None) -> None:
        if stencil.circular:
            raise NumericalError("A circular convolution is not cut out of a torus.", "Use the method fft.")
        if not np.isfinite(stencil.kernel).all():
            raise NumericalError("The kernel holds NaN or infinite entries.", "Check the checkpoint.")
        self.stencil = stencil
        self.workers = workers
        self.pieces: list[tuple[Torus, int]] = []
        for part, copies in stencil.split():
            step = max(1, _BATCH // max(1, _border(part) ** 2))
            for start in range(0, part.groups, step):
                piece = Stencil(part.kernel[start : start + step], part.axes)
                self.pieces.append((Torus(piece, workers), copies))

    @property
    def upper(self) -> float:
        """The largest singular value of the torus: a bound on sigma_max that always holds."""
        return max((float(torus.values.max()) for torus, _ in self.pieces), default=0.0)

    def integrand(self, nodes: int) -> tuple[Array, Array, float]:
        """(u, f, known): sum sigma = known + int_-1^1 f(u) du, f at the Gauss-Legendre points u.

        t = c ((1 + u) / (1 - u))^2, c the rms singular value of each piece. From log(1 + sigma^2 / t^2) the same of
        the torus is taken off, its values scaled and weighted to the same number and sum of squares, so that
        f falls off at both ends.
        """
        u = np.polynomial.legendre.leggauss(nodes)[0]
        ratio = (1 + u) / (1 - u)
        known = 0.0
        tasks = []
        for torus, copies in self.pieces:
            squares = torus.stencil.squares
            if squares == 0.0:
                continue
            share = torus.stencil.rank / torus.count
            stretch = squares / (share * torus.sum(torus.values**2))
            known += copies * share * float(np.sqrt(stretch)) * torus.sum(torus.values)
            scale = float(np.sqrt(squares / torus.stencil.rank))
            tasks += [(torus, copies, share, stretch, scale, place) for place in range(nodes)]

        def value(task: tuple[Torus, int, float, float, float, int]) -> float:
            torus, copies, share, stretch, scale, place = task
            t = scale * ratio[place] ** 2
            square = (torus.values / t) ** 2
            total = torus.sum(np.log1p(square) - share * np.log1p(stretch * square)) + border_log_det(torus, t)
            return copies * total * scale * 4 * ratio[place] / (1 - u[place]) ** 2 / np.pi

        # the last nodes of a large piece would leave a worker idle: nodes are the unit of work
        found = np.zeros(nodes)
        for task, entry in zip(tasks, threads.each(value, tasks, self.workers), strict=True):
            found[task[-1]] += entry
        return u, found, known

    def count_above(self, s: float) -> int:
        """Number of singular values above s > 0: exact, unless a singular value lies within rounding of s."""
        counts = threads.each(lambda piece: piece[1] * count_above(piece[0], s), self.pieces, self.workers)
        return sum(counts)


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


def _border(stencil: Stencil) -> int:
    """About the side of the border matrix that is left for B2, per group."""
    if len(stencil.axes) == 1:
        return 1
    outputs, inputs = stencil.kernel.shape[1:3]
    sides = sorted(axis.inputs for axis in stencil.axes)
    return int((outputs + inputs) * np.prod(sides[:-1]))


def _log_det(block: Array, split: int) -> float:
    """log |det| of a symmetric [[X, Y], [Y^T, -Z]], X and Z positive definite, by two Cholesky factors."""
    total = 0.0
    rest = -block[split:, split:]
    if split:
        factor, info = lapack.dpotrf(block[:split, :split].T, lower=1, clean=0)
        if info:
            return float(np.linalg.slogdet(block)[1])
        total += 2 * float(np.log(np.diag(factor)).sum())
        if len(rest):
            side = blas.dtrsm(1.0, factor, block[split:, :split].T, lower=1)
            rest = rest + side.T @ side
    if len(rest):
        factor, info = lapack.dpotrf(rest.T, lower=1, clean=0)
        if info:
            return float(np.linalg.slogdet(block)[1])
        total += 2 * float(np.log(np.diag(factor)).sum())
    return total


def _positive(block: Array) -> int:
    """Number of positive eigenvalues of a symmetric matrix, by LDL^T."""
    if len(block) == 0:
        return 0
    work, _ = lapack.dsytrf_lwork(len(block), lower=1)
    factor, pivots, _ = lapack.dsytrf(block.T, lower=1, lwork=int(work))
    alone = pivots > 0
    # a 2 x 2 pivot is indefinite: one eigenvalue of each sign
    return int(np.count_nonzero(np.diag(factor)[alone] > 0) + np.count_nonzero(~alone) // 2)
