"""Clip the singular values of a layer, convolutions taken as circular (Sedghi, Gupta and Long, ICLR 2019)."""

from __future__ import annotations

import torch


def clipped_matrix(weight: torch.Tensor, bound: float) -> torch.Tensor:
    """A matrix (m, n) with its singular values cut at `bound`: the nearest one of that norm."""
    u, values, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    clipped: torch.Tensor = ((u * values.clamp(max=bound)) @ vh).to(weight.dtype)
    return clipped


def clipped_kernel(
    weight: torch.Tensor, size: tuple[int, ...], bound: float, groups: int = 1
) -> torch.Tensor:
    """A kernel (outputs, inputs / groups, *taps) whose circular operator has its singular values cut at `bound`.

    size: of the layer's input; the stride plays no part. Clipping spreads the kernel over all of `size`; what
    falls outside its taps is dropped, so that the result may lie somewhat above the bound.
    """
    taps = tuple(weight.shape[2:])
    axes = tuple(range(2, weight.ndim))
    grid = tuple(max(length, count) for length, count in zip(size, taps, strict=True))
    parts = []
    for part in weight.double().chunk(groups):
        symbol = torch.fft.fftn(part, s=grid, dim=axes).movedim((0, 1), (-2, -1))
        u, values, vh = torch.linalg.svd(symbol, full_matrices=False)
        clipped = (u * values.clamp(max=bound)[..., None, :].to(u.dtype)) @ vh
        kernel = torch.fft.ifftn(clipped.movedim((-2, -1), (0, 1)), dim=axes).real
        parts.append(kernel[(slice(None), slice(None), *(slice(count) for count in taps))])
    return torch.cat(parts).to(weight.dtype)
