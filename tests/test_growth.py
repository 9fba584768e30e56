"""Gradients of fresh networks against the size of images (simongabriel2019, Theorems 4 to 7).

The long version, with more draws and errors, is benchmarks/growth.py.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import growth


@pytest.mark.parametrize(("name", "draws"), [("mlp", 16), ("strided6, circular", 20), ("dilated8", 16)])
def test_growth_with_the_number_of_inputs(name: str, draws: int) -> None:
    """||grad L||_q grows with slope 1/q - 1/2, ||grad f_k||_2 not at all, its entries fall with -1/2."""
    with torch.random.fork_rng():
        norms = growth.drawn(growth.networks(16)[name], growth.SIZES, draws)
    found, error = growth.slopes(norms, growth.SIZES)
    assert np.abs(found - growth.EXPECTED).max() < 0.05, found
    assert error.max() < 0.04


def test_zero_padding_is_what_theorem_5_leaves_out() -> None:
    """Maps of one value at 32 pixels and of 8x8 at 256: borders weigh less as images grow, so that slopes rise."""
    with torch.random.fork_rng():
        norms = growth.drawn(growth.networks(16)["strided6, zero-padded"], growth.SIZES, 8)
    found, _ = growth.slopes(norms, growth.SIZES)
    assert 0.05 < found[2] < 0.2


def test_mean_pools_divide_gradients_by_the_root_of_their_windows() -> None:
    with torch.random.fork_rng():
        areas, means, slope = growth.pooling(draws=12, width=32)
        ratio = growth.halved(draws=12, width=32)
    assert slope == pytest.approx(-0.5, abs=0.05)
    assert np.allclose(means * np.sqrt(areas), np.sqrt(2), rtol=0.1)
    assert ratio == pytest.approx(8, rel=0.15)
