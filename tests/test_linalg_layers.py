"""Convolutions as operators against torch's own modules, column by column, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from specdiag.errors import ModelError
from specdiag.linalg import dense
from specdiag.linalg.layers import convolution, from_module
from specdiag.linalg.operators import adjoint_error, diagonal, from_matrix

MODES = ("zeros", "circular", "reflect", "replicate")


def matrix_of(module: nn.Module, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    """The module's own matrix, from its answer to every unit input."""
    n = channels * int(np.prod(size))
    with torch.no_grad():
        return module(torch.eye(n, dtype=torch.float64).reshape(n, channels, *size)).flatten(1).T


def check(module: nn.Module, channels: int, size: tuple[int, ...]) -> None:
    module = module.double()
    torch.manual_seed(0)
    reference = matrix_of(module, channels, size)
    layer = from_module(module, size)
    operator = layer.operator()
    assert operator.shape == tuple(reference.shape)
    scale = float(reference.abs().max())
    assert float((operator.dense() - reference).abs().max()) <= 1e-12 * scale
    assert float((operator.T.dense() - reference.T).abs().max()) <= 1e-12 * scale
    assert adjoint_error(operator, torch.Generator().manual_seed(1)) < 1e-14
    stencil = layer.stencil()
    truth = np.linalg.svd(reference.numpy(), compute_uv=False)
    values = dense.singular_values(stencil)
    assert values.shape == truth.shape == (stencil.count,)
    assert np.abs(values - truth).max() <= 1e-8 * truth[0]
    assert stencil.squares == pytest.approx(float((truth**2).sum()), rel=1e-12)
    if not layer.transposed:
        whole = np.zeros(tuple(reference.shape))
        rows, columns = whole.shape[0] // stencil.groups, whole.shape[1] // stencil.groups
        for group in range(stencil.groups):
            block = slice(group * rows, (group + 1) * rows), slice(group * columns, (group + 1) * columns)
            whole[block] = stencil.sparse(group).toarray()
        assert np.abs(whole - reference.numpy()).max() <= 1e-14 * scale


PLANE = [
    (4, 6, 3, (7, 6), stride, padding, dilation, groups, mode)
    for (stride, padding, dilation), groups, mode in itertools.product(
        [(1, 1, 1), (2, 1, 1), (1, 2, 2), ((2, 1), (0, 2), (1, 2)), (3, 2, 2)], [1, 2], MODES
    )
] + [
    (3, 5, 1, (5, 4), 2, 0, 1, 1, "zeros"),
    (4, 4, (2, 5), (8, 8), (1, 2), (0, 2), 1, 4, "zeros"),
    (4, 4, 4, (8, 7), 1, 1, 1, 2, "zeros"),
    (2, 2, 3, (9, 9), 2, 2, 2, 1, "zeros"),
    (2, 3, 3, (10, 9), 4, 3, 2, 1, "zeros"),
    (3, 2, 7, (6, 6), 1, 3, 1, 1, "circular"),
    (3, 3, 3, (6, 6), 1, "same", 1, 3, "circular"),
    (2, 3, 4, (6, 7), 1, "same", 1, 1, "zeros"),
    (2, 3, 4, (6, 7), 1, "same", 1, 1, "reflect"),
    (2, 3, (2, 4), (6, 7), 1, "same", 2, 1, "replicate"),
    (2, 2, 2, (6, 6), 1, "same", 1, 1, "circular"),
    (2, 2, 3, (5, 5), 1, 0, 1, 1, "circular"),
    (2, 2, 3, (5, 5), 1, 4, 1, 1, "zeros"),
]


@pytest.mark.parametrize("case", PLANE, ids=str)
def test_convolution_2d(case) -> None:
    inputs, outputs, kernel, size, stride, padding, dilation, groups, mode = case
    torch.manual_seed(1)
    module = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=False,
        padding_mode=mode,
        dtype=torch.float64,
    )
    check(module, inputs, size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 2, 3, 2), (3, 1, 2, 1)]
)
def test_convolution_1d(mode, stride, padding, dilation, groups) -> None:
    torch.manual_seed(2)
    check(nn.Conv1d(4, 6, 3, stride, padding, dilation, groups, bias=False, padding_mode=mode), 4, (9,))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 2, 1, 2)])
def test_convolution_3d(mode, stride, padding, dilation, groups) -> None:
    torch.manual_seed(3)
    check(nn.Conv3d(2, 2, 3, stride, padding, dilation, groups, bias=False, padding_mode=mode), 2, (4, 3, 5))


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation", "groups"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (2, 0, 0, 1, 2), (3, 2, 2, 2, 2), (2, 1, 2, 3, 1), (1, 1, 0, 2, 1)],
)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed(axes, stride, padding, output_padding, dilation, groups) -> None:
    torch.manual_seed(4)
    kinds = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    size = {1: (7,), 2: (4, 5), 3: (3, 2, 3)}[axes]
    module = kinds[axes](4, 2, 3, stride, padding, output_padding, groups, bias=False, dilation=dilation)
    check(module, 4, size)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_drawn_combinations(data) -> None:
    groups = data.draw(st.integers(1, 3))
    inputs, outputs = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(3, 9)) for _ in range(2))
    kernel = tuple(data.draw(st.integers(1, 5)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    dilation = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    mode = data.draw(st.sampled_from(MODES))
    padding = tuple(data.draw(st.integers(0, 3)) for _ in range(2))
    if mode in ("reflect", "circular"):
        padding = tuple(min(p, n - 1) for p, n in zip(padding, size, strict=True))
    fits = all(
        n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)
    )
    if not fits:
        with pytest.raises(ModelError, match="too small"):
            convolution(torch.ones(1, 1, *kernel), size, padding=padding, dilation=dilation, mode=mode)
        return
    torch.manual_seed(5)
    check(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode),
        inputs,
        size,
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_scale_per_channel(transposed) -> None:
    torch.manual_seed(6)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = kind(4, 6, 3, stride=2, padding=1, groups=2, bias=False).double()
    scale = torch.randn(6, dtype=torch.float64)
    layer = from_module(module, (5, 6), scale)
    plain = matrix_of(module, 4, (5, 6))
    expected = plain * scale.repeat_interleave(plain.shape[0] // 6)[:, None]
    assert float((layer.operator().dense() - expected).abs().max()) < 1e-14
    truth = np.linalg.svd(expected.numpy(), compute_uv=False)
    assert np.abs(dense.singular_values(layer.stencil()) - truth).max() <= 1e-8 * truth[0]


def test_float32_weights_keep_their_type() -> None:
    layer = from_module(nn.Conv2d(2, 3, 3, padding=1, bias=False), (4, 4))
    operator = layer.operator()
    assert operator.matmat(torch.ones(2, 32)).dtype == torch.float32
    assert layer.stencil().kernel.dtype == np.float64


def test_exact_keeps_small_values() -> None:
    """A Gram matrix alone would lose everything below 1e-8 of the largest value."""
    rng = np.random.default_rng(0)
    for side in (60, 700):
        left = np.linalg.qr(rng.standard_normal((side + 20, side)))[0]
        right = np.linalg.qr(rng.standard_normal((side, side)))[0]
        sigma = np.concatenate([np.linspace(1, 2, side - 8), 10.0 ** np.arange(-1, -9, -1)])
        error = np.abs(dense.of_matrix((left * sigma) @ right.T) - np.sort(sigma)[::-1])
        assert error.max() <= 1e-8 * 2
        assert error[-3:].max() < 1e-13


def test_exact_of_a_rank_deficient_layer() -> None:
    """A stride that skips inputs leaves zero columns: their singular values are zeros, not left out."""
    module = nn.Conv2d(1, 4, 1, stride=2, bias=False).double()
    values = dense.singular_values(from_module(module, (4, 4)).stencil())
    assert values.shape == (16,)
    norm = float(module.weight.detach().norm())
    assert np.abs(values - np.r_[[norm] * 4, [0.0] * 12]).max() < 1e-15


def test_exact_says_what_it_would_cost() -> None:
    stencil = convolution(torch.ones(64, 64, 3, 3), (32, 32), padding=1).stencil()
    with pytest.raises(Exception, match=r"65536 singular values need 103\.1 GB and about 33\d\d\d s"):
        dense.singular_values(stencil, memory=8e9)


def test_composition_transpose_and_diagonal() -> None:
    torch.manual_seed(7)
    a = from_module(nn.Conv2d(2, 3, 3, padding=1, bias=False).double(), (4, 4)).operator()
    d = diagonal(torch.randn(48, dtype=torch.float64))
    both = d @ a
    assert torch.allclose(both.dense(), d.dense() @ a.dense(), atol=1e-14)
    assert torch.allclose(both.T.dense(), both.dense().T, atol=1e-14)
    assert adjoint_error(both, torch.Generator().manual_seed(0)) < 1e-14
    with pytest.raises(ValueError, match="compose"):
        a @ d


def test_one_operator_per_sample() -> None:
    torch.manual_seed(8)
    stack = torch.randn(3, 4, 5, dtype=torch.float64)
    operator = from_matrix(stack)
    assert torch.equal(operator.dense(), stack)
    assert adjoint_error(operator, torch.Generator().manual_seed(0)) < 1e-14
    with pytest.raises(ValueError, match="one row per map"):
        operator.matmat(torch.ones(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="length 5"):
        operator.matmat(torch.ones(3, 4, dtype=torch.float64))


def test_no_convolution_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear is no convolution"):
        from_module(nn.Linear(2, 2), (2,))
    with pytest.raises(ModelError, match="does not fit"):
        convolution(torch.ones(1, 1, 3, 3), (4,))
    with pytest.raises(ModelError, match="no padding"):
        convolution(torch.ones(1, 1, 3), (4,), padding="full")
