"""Weight steps: clipped and normalised operators against their dense matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training_common import (
    slim,
    true_norms,
)

from specdiag.linalg.layers import from_module
from specdiag.training._clip import clipped_kernel, clipped_matrix
from specdiag.training._run import train


def test_matrices_are_clipped_to_the_nearest_one() -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4).double())[0] for n in (6, 5))
    matrix = u @ torch.diag(torch.tensor([4.0, 2.0, 0.5, 0.1]).double()) @ v.T
    wanted = u @ torch.diag(torch.tensor([1.0, 1.0, 0.5, 0.1]).double()) @ v.T
    torch.testing.assert_close(clipped_matrix(matrix, 1.0), wanted, rtol=1e-12, atol=1e-14)


def circular(kernel: torch.Tensor, side: int, groups: int) -> torch.Tensor:
    layer = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        kernel.shape[2],
        bias=False,
        padding=kernel.shape[2] // 2,
        padding_mode="circular",
        groups=groups,
    ).double()
    layer.weight.data = kernel
    return torch.linalg.svdvals(from_module(layer, (side, side)).operator().dense())


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_are_clipped(groups: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(4, 4 // groups, 5, 5).double()
    clipped = clipped_kernel(whole, (5, 5), 3.0, groups)
    before, after = circular(whole, 5, groups), circular(clipped, 5, groups)
    # a kernel as large as the image loses nothing to cropping
    torch.testing.assert_close(after, before.clamp(max=3.0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(clipped_kernel(whole, (5, 5), 1e3, groups), whole, rtol=1e-12, atol=1e-12)
    small = torch.randn(4, 4 // groups, 3, 3).double()
    bound = 0.5 * float(circular(small, 8, groups)[0])
    cropped = float(circular(clipped_kernel(small, (8, 8), bound, groups), 8, groups)[0])
    assert cropped < 0.75 * 2 * bound


def test_spectral_normalisation_bounds_the_true_norms(tmp_path: Path) -> None:
    ours = true_norms(train(slim(tmp_path / "a.pt", "spectral-normalisation", {"beta": 0.8}, epochs=4)))
    assert max(ours.values()) <= 0.8 * 1.0001
    exact = {"beta": 0.8, "enforce": "equal"}
    equal = true_norms(train(slim(tmp_path / "b.pt", "spectral-normalisation", exact)))
    assert list(equal.values()) == pytest.approx([0.8] * 5, rel=1e-4)
    kernels = {"beta": 0.8, "enforce": "equal", "layer_norm": "kernel"}
    miyato = true_norms(train(slim(tmp_path / "c.pt", "spectral-normalisation", kernels)))
    assert max(miyato.values()) > 0.8 * 1.5


def test_singular_values_are_clipped_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    free = true_norms(train(slim(tmp_path / "a.pt", "standard")))
    clipped = true_norms(train(slim(tmp_path / "b.pt", "sv-clip", {"bound": 0.5})))
    assert clipped["linear"] <= 0.5 * (1 + 1e-6)
    assert all(clipped[name] < 0.8 * free[name] for name in free)
