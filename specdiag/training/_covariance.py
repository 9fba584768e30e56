"""Second moments of perturbations, as a matrix or as a function of pixel displacement (roth2018 3.3)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def full_moments(delta: torch.Tensor) -> torch.Tensor:
    """E[delta delta^T], (D, D), of perturbations (N, ...) (eq. 15)."""
    flat = delta.flatten(1)
    return flat.T @ flat / len(flat)


def displacement_moments(delta: torch.Tensor) -> torch.Tensor:
    """Mean of delta_a(p) delta_b(p + d) over samples and pixels p, (C, C, 2 H - 1, 2 W - 1), d = 0 in the middle (eq. 16).

    delta: (N, C, H, W).
    """
    height, width = delta.shape[2:]
    grid = (2 * height - 1, 2 * width - 1)
    symbol = torch.fft.fft2(delta, s=grid)
    cross = torch.einsum("nahw,nbhw->abhw", symbol.conj(), symbol) / len(delta)
    sums = torch.fft.fftshift(torch.fft.ifft2(cross).real, dim=(2, 3))
    rows = height - torch.arange(1 - height, height, device=delta.device).abs()
    columns = width - torch.arange(1 - width, width, device=delta.device).abs()
    moments: torch.Tensor = sums / (rows[:, None] * columns)
    return moments


def times_full(moments: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Sigma g for each sample, g (N, ...)."""
    return (g.flatten(1) @ moments).reshape(g.shape)


def times_displacement(moments: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Sigma g for each sample g (N, C, H, W), where Sigma depends on the displacement alone."""
    return F.conv2d(g, moments, padding=(g.shape[2] - 1, g.shape[3] - 1))


def mean_diagonal(moments: torch.Tensor) -> torch.Tensor:
    """Mean second moment of one input value, of either form."""
    if moments.ndim == 2:
        return moments.diagonal().mean()
    middle = moments[:, :, moments.shape[2] // 2, moments.shape[3] // 2]
    return middle.diagonal().mean()
