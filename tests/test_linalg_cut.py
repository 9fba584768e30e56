"""Sums, counts and quantiles of zero-padded convolutions against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdiag.linalg import dense
from specdiag.linalg.border import border_log_det
from specdiag.linalg.counts import Ranks
from specdiag.linalg.cut import Cut, Rule
from specdiag.linalg.estimate import Estimate, mean_and_std
from specdiag.linalg.layers import convolution
from specdiag.linalg.stencil import Stencil


def layer(co, ci, k, size, stride=1, padding=1, dilation=1, groups=1, seed=0, **options) -> Stencil:
    kernel = (k,) * len(size) if isinstance(k, int) else k
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(
        rng.standard_normal((co, ci // groups, *kernel)) / np.sqrt(np.prod(kernel) * ci / groups)
    )
    return convolution(
        weight, size, stride=stride, padding=padding, dilation=dilation, groups=groups, **options
    ).stencil()


CONFIGURATIONS = [
    (4, 4, 3, (8, 8), 1, 1, 1),
    (3, 5, 3, (9, 7), 1, 1, 1),
    (5, 3, 3, (7, 9), 1, 0, 1),
    (4, 4, 3, (6, 6), 1, 2, 1),
    (3, 3, 2, (7, 7), 1, 0, 1),
    (4, 3, 4, (8, 7), 1, 1, 1),
    (6, 4, 3, (8, 8), 2, 1, 1),
    (6, 4, 3, (9, 7), 2, 1, 1),
    (4, 4, 3, (9, 8), 1, 2, 2),
    (3, 4, 5, (11, 10), 3, 2, 1),
    (4, 4, 3, (10, 9), 2, 2, 2),
    (8, 3, 7, (14, 14), 2, 3, 1),
    (4, 4, 1, (6, 6), 2, 0, 1),
]

OTHERS = [
    layer(6, 6, 3, (9, 8), groups=3),
    layer(8, 8, 3, (10, 10), groups=8),
    layer(6, 4, 3, (8, 9), stride=2, groups=2),
    layer(3, 4, 3, (25,)),
    layer(3, 4, 5, (24,), stride=3, padding=2, dilation=2),
    layer(2, 3, 3, (5, 4, 6)),
    layer(2, 2, 2, (5, 5, 5), stride=2, padding=0),
    layer(3, 2, (1, 3), (6, 7), padding=(0, 1)),
    layer(3, 2, (3, 1), (6, 7), padding=(1, 0)),
    layer(2, 3, 3, (12, 11), padding=3, dilation=3),
    layer(2, 2, 3, (9, 9), padding=4),
    layer(3, 2, 3, (7, 8), stride=3, padding=1, dilation=2),
    layer(2, 4, 2, (10, 9), stride=4, padding=1),
    layer(3, 4, 3, (6, 7), stride=2, transposed=True, output_padding=1),
]


def check(stencil: Stencil, nodes: int, tolerance: float) -> None:
    truth = dense.singular_values(stencil)
    cut = Cut(stencil)
    found = cut.sums(Rule.graded(nodes))[0]
    mean, std = mean_and_std(Estimate(found, 0.0), stencil.squares, stencil.count)
    assert mean.value == pytest.approx(truth.mean(), rel=tolerance)
    assert std.value == pytest.approx(truth.std(), rel=tolerance)
    assert cut.upper >= truth[0] * (1 - 1e-12)
    for share in (0.1, 0.37, 0.5, 0.9):
        level = float(np.quantile(truth, share)) * 1.00001
        if level > 1e-9 * truth[0]:
            assert cut.count_above(level) == np.count_nonzero(truth > level)
    assert cut.count_above(truth[0] * (1 + 1e-9)) == 0
    assert cut.count_above(truth[0] * (1 - 1e-9)) >= 1


@pytest.mark.parametrize("case", CONFIGURATIONS, ids=str)
def test_thirteen_configurations(case) -> None:
    co, ci, k, size, stride, padding, dilation = case
    check(layer(co, ci, k, size, stride, padding, dilation), 24, 3e-8)


@pytest.mark.parametrize("stencil", OTHERS, ids=lambda s: f"{s.kernel.shape}-{[a.inputs for a in s.axes]}")
def test_groups_other_dimensions_and_strange_borders(stencil) -> None:
    check(stencil, 24, 1e-7)


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(st.data())
def test_counts_and_determinants_of_drawn_layers(data) -> None:
    groups = data.draw(st.integers(1, 2))
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    size = tuple(data.draw(st.integers(3, 8)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    dilation = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, 3)) for _ in range(2))
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return
    co, ci = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    stencil = layer(co, ci, kernel, size, stride, padding, dilation, groups, data.draw(st.integers(0, 9)))
    if stencil.squares == 0:
        return
    truth = dense.singular_values(stencil)
    cut = Cut(stencil)
    level = truth[0] * data.draw(st.floats(0.05, 0.999))
    if np.abs(truth - level).min() > 1e-9 * truth[0]:
        assert cut.count_above(level) == np.count_nonzero(truth > level)
    t = truth[0] * data.draw(st.floats(0.001, 3.0))
    found = sum(
        piece.copies
        * (border_log_det(piece.torus, t) + piece.torus.sum(np.log1p((piece.torus.values / t) ** 2)))
        for piece in cut.pieces
    )
    assert found == pytest.approx(float(np.log1p((truth / t) ** 2).sum()), rel=1e-9)


def test_dead_channels_do_not_disturb_the_sum() -> None:
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 5, 3, 3)))
    weight[[1, 4]] = 0
    weight[:, 2] = 0
    stencil = convolution(weight, (9, 9), padding=1).stencil()
    truth = dense.singular_values(stencil)
    assert np.count_nonzero(truth == 0) == 405 - 4 * 81
    assert Cut(stencil).sums(Rule.graded(24))[0] == pytest.approx(truth.sum(), rel=1e-7)


def test_identity_and_zero_kernels() -> None:
    weight = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    assert Cut(convolution(weight, (7, 7), padding=1).stencil()).total() == Estimate(0.0, 0.0)
    weight[range(3), range(3), 1, 1] = 2.5
    identity = Cut(convolution(weight, (7, 7), padding=1).stencil())
    assert identity.total().value == pytest.approx(2.5 * 147, rel=1e-12)
    assert identity.count_above(2.4) == 147
    assert identity.count_above(2.6) == 0


def test_a_second_difference_has_its_closed_form() -> None:
    """The Toeplitz matrix (-1, 2, -1) of side n: 2 - 2 cos(pi j / (n + 1))."""
    weight = torch.tensor([[[-1.0, 2.0, -1.0]]], dtype=torch.float64)
    stencil = convolution(weight, (40,), padding=1).stencil()
    truth = 2 - 2 * np.cos(np.pi * np.arange(1, 41) / 41)
    assert np.abs(np.sort(dense.singular_values(stencil)) - truth).max() < 4e-8
    cut = Cut(stencil)
    assert cut.sums(Rule.graded(40))[0] == pytest.approx(80, rel=1e-8)
    assert [cut.count_above(s) for s in (0.01, 1.0, 2.001, 3.9)] == [
        int((truth > s).sum()) for s in (0.01, 1.0, 2.001, 3.9)
    ]


def varied(number: int) -> Stencil:
    rng = np.random.default_rng(100 + number)
    co, ci = (int(entry) for entry in rng.integers(1, 8, 2))
    k, stride = int(rng.choice([2, 3, 3, 5])), int(rng.choice([1, 1, 2]))
    size = tuple(int(entry) for entry in rng.integers(8, 15, 2))
    stencil = layer(co, ci, k, size, stride, k // 2, seed=number)
    kernel = stencil.kernel
    if number % 3 == 1:
        kernel = kernel * np.exp(-np.arange(ci))[:, None, None]
    if number % 3 == 2:
        kernel = kernel + rng.standard_normal((1, co, ci, 1, 1))
    return Stencil(kernel, stencil.axes)


def test_the_quick_sum_and_its_error() -> None:
    covered = []
    for number in range(40):
        stencil = varied(number)
        truth = dense.singular_values(stencil)
        total = Cut(stencil).total()
        mean, std = mean_and_std(total, stencil.squares, stencil.count)
        assert std.value == pytest.approx(truth.std(), rel=1e-3)
        covered.append(
            abs(total.value - truth.sum()) <= total.error + 1e-12 * truth.sum()
            and abs(std.value - truth.std()) <= std.error + 1e-12 * truth[0]
            and abs(mean.value - truth.mean()) <= mean.error + 1e-12 * truth[0]
        )
    assert sum(covered) >= 39


def test_the_fine_sum() -> None:
    for number in range(0, 40, 5):
        stencil = varied(number)
        truth = dense.singular_values(stencil)
        total = Cut(stencil).total(fine=True)
        assert total.value == pytest.approx(truth.sum(), rel=2e-6)
        assert abs(total.value - truth.sum()) <= total.error + 1e-12 * truth.sum()


def test_ranks_are_exact_and_few_counts_find_them() -> None:
    stencil = layer(8, 8, 3, (12, 12))
    truth = dense.singular_values(stencil)
    ranks = Ranks(Cut(stencil))
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        found = ranks.at(share * stencil.count)
        assert found.above == np.count_nonzero(truth > found.value)
        assert abs(found.above - share * stencil.count) <= 1
        assert found.counts <= 6
    with pytest.raises(ValueError, match="no rank"):
        ranks.at(stencil.count)


def test_workers_do_not_change_bytes() -> None:
    stencil = layer(8, 8, 3, (9, 9), groups=2)
    assert Cut(stencil, 1).total() == Cut(stencil, 2).total()


def test_what_cannot_be_cut() -> None:
    with pytest.raises(Exception, match="method fft"):
        Cut(layer(2, 2, 3, (6, 6), mode="circular"))
    broken = layer(2, 2, 3, (6, 6))
    broken.kernel[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(Exception, match="NaN"):
        Cut(broken)
