"""Activations within rounding of a kink are counted per sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specdiag.kinks import KinkCounter


def count(function: object, z: torch.Tensor) -> list[int]:
    with KinkCounter() as counter:
        function(z)  # type: ignore[operator]
    assert counter.counts is not None
    return counter.counts.tolist()


Z = torch.tensor([[1.0, -2.0, 1e-8, 3.0], [1.0, 2.0, 3.0, 4.0], [0.0, -1e-9, 2.0, 2.0]])


@pytest.mark.parametrize(
    "function", [F.relu, torch.relu, nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU().eval()]
)
def test_zero_kinks(function: object) -> None:
    assert count(function, Z.clone()) == [1, 0, 2]


def test_in_place_is_counted_before_the_change() -> None:
    assert count(nn.ReLU(inplace=True), Z.clone()) == [1, 0, 2]


def test_other_kinks() -> None:
    z = torch.tensor([[6.0 + 1e-7, 1.0], [3.0, 1.0]])
    assert count(nn.ReLU6(), z) == [1, 0]
    assert count(nn.Hardswish(), z) == [0, 1]
    assert count(nn.Hardtanh(-1, 1), z) == [1, 1]


def test_the_rms_is_that_of_the_sample() -> None:
    small = torch.tensor([[1e-7, 1.0]])
    assert count(F.relu, small) == [1]
    assert count(F.relu, torch.cat([small, torch.full((1, 2), 1e9)])) == [1, 0]
    assert count(F.relu, torch.tensor([[1e-7, 1e-7]])) == [0]


def test_pooling_ties() -> None:
    z = torch.zeros(3, 1, 2, 4)
    z[0, 0, 0] = torch.tensor([1.0, 1.0, 5.0, 2.0])
    z[1, 0, 0] = torch.tensor([1.0, 2.0, 5.0, 2.0])
    assert count(nn.MaxPool2d(2), z) == [1, 0, 0], "a window of zeros after a ReLU is no kink"


def test_smooth_networks_have_none() -> None:
    with KinkCounter() as counter:
        nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softplus())(Z)
    assert counter.counts is None
