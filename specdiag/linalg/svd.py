"""Batched singular values and vectors of short, fat (or tall) matrices, and the one rank cut-off.

Through a QR of the tall side: the QR is stable and the SVD that is left is only K x K, which is an order of
magnitude faster than a direct SVD of 10 x 3072.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdiag.errors import NumericalError
from specdiag.linalg.blocked import values_and_vectors

# entries of one matrix from which on it is not copied as a whole
LARGE = 2**24


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values (N, R) in falling order, R = min(m, n); the `top` left (N, m, top) and right (N, n, top) vectors."""

    values: torch.Tensor
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None


def cutoff(dtype: torch.dtype, shape: tuple[int, int], sigma_max: float) -> float:
    """Singular values at or below it count as zero: max(m, n) times the machine epsilon times sigma_max.

    The convention of numpy's and MATLAB's `rank`. It serves rank and condition; stored values are never
    dropped or zeroed.
    """
    return max(shape) * torch.finfo(dtype).eps * sigma_max


def svd(matrices: torch.Tensor, top: int = 0) -> Spectrum:
    """Singular values of each matrix, (N, m, n) -> float64 values (N, min(m, n)).

    With `top` > 0 also the vectors that belong to the `top` largest values, each vector's sign chosen so that
    the left vector's entry of largest magnitude is positive. Computed in float64 whatever the input's dtype, so that the
    result's error is that of the matrices themselves. Raises NumericalError naming the row of a matrix with NaN or
    infinite entries.
    """
    bad = ~torch.isfinite(matrices).flatten(1).all(1)
    if bool(bad.any()):
        raise NumericalError(f"Matrix {int(bad.nonzero()[0])} of the batch holds NaN or infinite entries.")
    if matrices.shape[1] * matrices.shape[2] > LARGE:
        return _one_by_one(matrices, top)
    tall = matrices.double()
    flipped = matrices.shape[1] < matrices.shape[2]
    if flipped:
        tall = tall.mT
    if top == 0:
        reduced = torch.linalg.qr(tall, mode="r")[1]
        return Spectrum(torch.linalg.svdvals(reduced))
    q, reduced = torch.linalg.qr(tall)
    u, values, vh = torch.linalg.svd(reduced)
    tall_vectors, short_vectors = q @ u[..., :top], vh.mT[..., :top]
    left, right = (short_vectors, tall_vectors) if flipped else (tall_vectors, short_vectors)
    left, right = _fix_signs(left, right)
    return Spectrum(values, left, right)


def _one_by_one(matrices: torch.Tensor, top: int) -> Spectrum:
    """As `svd`, for matrices of which one alone is too large to be copied."""
    found = [values_and_vectors(matrix, top) for matrix in matrices]
    values = torch.stack([entry[0] for entry in found])
    if top == 0:
        return Spectrum(values)
    left = torch.stack([entry[1] for entry in found if entry[1] is not None])
    right = torch.stack([entry[2] for entry in found if entry[2] is not None])
    return Spectrum(values, *_fix_signs(left, right))


def _fix_signs(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = left.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(left.gather(1, largest) < 0, -1.0, 1.0).to(left.dtype)
    return left * sign, right * sign
