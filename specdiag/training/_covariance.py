"""Second moments of perturbations, as a matrix or as a function of pixel displacement (roth2018 3.3)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from specdiag.linalg.displacement import displacement_pairs, displacement_sums


def full_moments(delta: torch.Tensor) -> torch.Tensor:
    """E[delta delta^T], (D, D), of perturbations (N, ...) (eq. 15)."""
    flat = delta.flatten(1)
    return flat.T @ flat / len(flat)


def displacement_moments(delta: torch.Tensor) -> torch.Tensor:
    """Mean of delta_a(p) delta_b(p + d) over samples and pixels p, (C, C, 2 H - 1, 2 W - 1), d = 0 in the middle (eq. 16).

    delta: (N, C, H, W).
    """
    height, width = delta.shape[2:]
    return displacement_sums(delta) / len(delta) / displacement_pairs(height, width, delta.device)


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
