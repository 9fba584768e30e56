"""Circulant operators: symbol against dense matrices, and kernels whose spectrum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdiag.linalg import circular
from specdiag.linalg.layers import convolution
from specdiag.linalg.stencil import Axis, Stencil


def circulant(kernel, size, stride=1, dilation=1) -> Stencil:
    """(G, C_out / G, C_in / G, *taps) on a torus of `size` inputs."""
    taps = kernel.shape[3:]
    axes = tuple(Axis(n, n // stride, k, stride, dilation, 1) for n, k in zip(size, taps, strict=True))
    return Stencil(kernel, axes, "circular")


def truth(stencil: Stencil) -> np.ndarray:
    parts = [stencil.sparse(group).toarray() for group in range(stencil.groups)]
    values = np.concatenate([np.linalg.svd(part, compute_uv=False) for part in parts])
    return np.sort(values)[::-1]


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(
        (np.abs(found - expected) <= 1e-6 * expected + 1e-12 * expected[0]).all()
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_against_dense(data) -> None:
    axes = data.draw(st.integers(1, 3))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size = tuple(stride * data.draw(st.integers(1, {1: 9, 2: 4, 3: 2}[axes])) for _ in range(axes))
    shape = [data.draw(st.integers(1, 4)) for _ in range(3)] + [
        data.draw(st.integers(1, 4)) for _ in range(axes)
    ]
    kernel = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape)
    stencil = circulant(kernel, size, stride, dilation)
    assert close(circular.singular_values(stencil), truth(stencil))


def test_the_layer_itself() -> None:
    torch.manual_seed(0)
    layer = convolution(
        torch.randn(6, 2, 3, 3).double(), (8, 6), padding=1, stride=2, groups=2, mode="circular"
    )
    assert circular.applies(layer.stencil())
    expected = torch.linalg.svdvals(layer.operator().dense()).numpy()
    assert close(circular.singular_values(layer.stencil()), expected)


def test_what_is_not_circulant() -> None:
    weight = torch.randn(2, 2, 3, 3).double()
    for options in ({"padding": 1}, {"padding": 2, "mode": "circular"}, {"mode": "circular"}):
        stencil = convolution(weight, (6, 6), **options).stencil()
        assert not circular.applies(stencil)
        with pytest.raises(ValueError, match="circulant"):
            circular.singular_values(stencil)
    odd = convolution(weight, (5, 5), padding=1, stride=2, mode="circular").stencil()
    assert not circular.applies(odd)


def test_identity_orthogonal_and_averaging() -> None:
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    kernel = np.zeros((1, 5, 5, 3, 3))
    kernel[0, :, :, 1, 2] = q
    assert circular.singular_values(circulant(kernel, (6, 7))) == pytest.approx(np.ones(210), abs=1e-14)
    mean = np.full((1, 1, 1, 3), 1 / 3)
    expected = np.sort(np.abs(1 + 2 * np.cos(2 * np.pi * np.arange(8) / 8)) / 3)[::-1]
    assert circular.singular_values(circulant(mean, (8,))) == pytest.approx(expected, abs=1e-15)


def test_depthwise_is_the_transform_of_each_kernel() -> None:
    kernel = np.random.default_rng(2).standard_normal((7, 1, 1, 3, 3))
    expected = np.sort(np.abs(np.fft.fft2(kernel[:, 0, 0], (8, 8))).ravel())[::-1]
    assert circular.singular_values(circulant(kernel, (8, 8))) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("channels", [2, 6])
def test_tiny_values_beside_large_ones(channels) -> None:
    """Values at 1e-9 of the largest, where squares have no digits left, still have six."""
    rng = np.random.default_rng(3)
    scale = np.logspace(0, -9, channels)
    left, right = (np.linalg.qr(rng.standard_normal((channels, channels)))[0] for _ in range(2))
    taps = rng.standard_normal((channels, 5))
    kernel = np.einsum("oc,c,ca,ci->oia", left, scale, taps, right)[None]
    transforms = np.abs(np.fft.fft(taps, 12, axis=1)) * scale[:, None]
    expected = np.sort(transforms.ravel())[::-1]
    found = circular.singular_values(circulant(kernel, (12,)))
    assert np.abs(found / expected - 1)[expected > 1e-6 * expected[0]].max() < 1e-6
    assert close(found, expected)


def test_low_pass_kernels() -> None:
    """At high frequencies the sum over taps cancels: the error there is set by the low frequencies."""
    smooth = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    mix = np.random.default_rng(4).standard_normal((4, 4))
    kernel = (mix[:, :, None, None] * np.outer(smooth, smooth))[None]
    stencil = circulant(kernel, (16, 16))
    assert close(circular.singular_values(stencil), truth(stencil))


def test_workers_do_not_change_bytes() -> None:
    kernel = np.random.default_rng(5).standard_normal((1, 64, 48, 3, 3))
    stencil = circulant(kernel, (18, 16))
    one, two = (circular.singular_values(stencil, workers) for workers in (1, 2))
    assert one.tobytes() == two.tobytes()


def test_nan_is_named() -> None:
    with pytest.raises(Exception, match="NaN"):
        circular.singular_values(circulant(np.full((1, 1, 1, 3), np.nan), (8,)))
