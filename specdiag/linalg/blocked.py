"""Singular values of one matrix too large to copy: QR of it block by block (TSQR, Demmel et al. 2012, section 3).

As accurate as a QR of the whole, in float64, with memory for one block beside the matrix itself.
"""

from __future__ import annotations

import torch

BLOCK_VALUES = 2**22


def triangle(matrix: torch.Tensor) -> torch.Tensor:
    """R (r, r) float64 of the QR of the tall side of a matrix (m, n), r = min(m, n): it has the same singular values."""
    tall = matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix
    rows, columns = tall.shape
    block = max(2 * columns, BLOCK_VALUES // columns)
    reduced = tall.new_zeros((0, columns), dtype=torch.float64)
    for start in range(0, rows, block):
        stacked = torch.cat([reduced, tall[start : start + block].double()])
        reduced = torch.linalg.qr(stacked, mode="r")[1]
    return reduced


def values_and_vectors(
    matrix: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(values (r,), the `top` left (m, top) and right (n, top) vectors or None) of one matrix, float64.

    The vectors of the long side are the matrix times those of the short side, scaled to unit length.
    """
    reduced = triangle(matrix)
    if top == 0:
        return torch.linalg.svdvals(reduced), None, None
    _, values, vh = torch.linalg.svd(reduced)
    short = vh[:top].mT
    wide = matrix.shape[0] < matrix.shape[1]
    long = _times(matrix.mT if wide else matrix, short)
    long = long / torch.linalg.vector_norm(long, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return (values, short, long) if wide else (values, long, short)


def _times(tall: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    block = max(1, BLOCK_VALUES // tall.shape[1])
    return torch.cat([tall[start : start + block].double() @ vectors for start in range(0, len(tall), block)])
