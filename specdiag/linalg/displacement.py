"""Products of two pixels summed by their displacement, by FFT (roth2018 eq. 16)."""

from __future__ import annotations

import torch


def displacement_sums(x: torch.Tensor) -> torch.Tensor:
    """Sum over samples n and pixels p of x_n,a(p) x_n,b(p + d), (C, C, 2 H - 1, 2 W - 1), d = 0 in the middle.

    x: (N, C, H, W).
    """
    height, width = x.shape[2:]
    symbol = torch.fft.fft2(x, s=(2 * height - 1, 2 * width - 1))
    cross = torch.einsum("nahw,nbhw->abhw", symbol.conj(), symbol)
    sums: torch.Tensor = torch.fft.fftshift(torch.fft.ifft2(cross).real, dim=(2, 3))
    return sums


def displacement_pairs(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """How many pairs of pixels have each displacement, (2 H - 1, 2 W - 1)."""
    rows = height - torch.arange(1 - height, height, device=device).abs()
    columns = width - torch.arange(1 - width, width, device=device).abs()
    return rows[:, None] * columns
