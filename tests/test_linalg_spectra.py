"""Spectra of layers by every method, each against the dense matrix, with errors that cover."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from specdiag.errors import NumericalError, UsageError
from specdiag.linalg import cost, dense, extrapolate, quadrature, spectra
from specdiag.linalg.counts import Ranks
from specdiag.linalg.cut import Cut
from specdiag.linalg.largest import BRACKET, largest
from specdiag.linalg.layers import Convolution, convolution, from_module
from specdiag.linalg.spectra import SHARES, Settings, of_convolution, of_matrix


def make(co, ci, k, size, seed=0, **options) -> Convolution:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((co, ci // options.get("groups", 1), *[k] * len(size))))
    return convolution(weight / (k * ci**0.5), size, **{"padding": k // 2, **options})


@cache
def truth_of(layer: Convolution) -> np.ndarray:
    return np.linalg.svd(layer.operator().dense().numpy(), compute_uv=False)


LAYERS = {
    "plain": make(6, 6, 3, (13, 13)),
    "fewer outputs": make(3, 8, 3, (12, 14)),
    "strided": make(8, 4, 3, (16, 16), stride=2),
    "grouped": make(8, 8, 3, (12, 12), groups=4),
    "dilated": make(4, 4, 3, (17, 15), padding=2, dilation=2),
    "unpadded": make(5, 4, 3, (14, 14), padding=0),
    "depthwise": make(12, 12, 5, (11, 12), groups=12),
    "one axis": make(6, 5, 3, (40,)),
    "transposed": make(4, 3, 3, (9, 9), stride=2, transposed=True, output_padding=1),
    "three axes": make(2, 2, 3, (7, 7, 7)),
}
EVERY = {
    **LAYERS,
    "circular": make(5, 4, 3, (12, 12), mode="circular"),
    "circular strided": make(5, 4, 3, (12, 12), mode="circular", stride=2),
    "reflect": make(5, 4, 3, (10, 11), mode="reflect"),
    "replicate": make(5, 4, 3, (10, 11), mode="replicate", stride=2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fine", [False, True])
def test_cut(name, fine) -> None:
    layer = LAYERS[name]
    truth = truth_of(layer)
    found = of_convolution(layer, Settings(method="cut", fine=fine))
    assert found.method == "cut"
    assert found.values is None
    assert found.sigma_max.value == pytest.approx(truth[0], rel=BRACKET)
    assert found.std.value == pytest.approx(truth.std(), rel=3e-6 if fine else 1e-3)
    assert found.frobenius == pytest.approx(np.linalg.norm(truth), rel=1e-12)
    for estimate, value in (
        (found.sigma_max, truth[0]),
        (found.sigma_min, truth[-1]),
        (found.mean, truth.mean()),
        (found.std, truth.std()),
    ):
        assert abs(estimate.value - value) <= estimate.error + 1e-9 * truth[0]
    # a quantile lies somewhere between two neighbouring values
    at = np.clip(
        (np.array(SHARES) * len(truth)).astype(int)[:, None] + np.array([-1, 0, 1]), 0, len(truth) - 1
    )
    near = np.sort(truth)[at]
    inside = [
        e.value - e.error <= row.max() and row.min() <= e.value + e.error
        for e, row in zip(found.quantiles, near, strict=True)
    ]
    assert sum(inside) >= len(SHARES) - (0 if fine else 1)


@pytest.mark.parametrize("name", EVERY)
def test_auto_is_right_about_its_error(name) -> None:
    layer = EVERY[name]
    truth = truth_of(layer)
    found = of_convolution(layer)
    assert found.method == ("fft" if "circular" in name else "exact" if found.values is not None else "cut")
    for estimate, value in (
        (found.sigma_max, truth[0]),
        (found.sigma_min, truth[-1]),
        (found.mean, truth.mean()),
        (found.std, truth.std()),
    ):
        assert abs(estimate.value - value) <= estimate.error + 1e-12 * truth[0]


@pytest.mark.parametrize("name", EVERY)
def test_exact(name) -> None:
    truth = truth_of(EVERY[name])
    found = of_convolution(EVERY[name], Settings(method="exact"))
    assert np.abs(found.values - truth).max() <= 1e-8 * truth[0]
    assert found.std.value == pytest.approx(truth.std(), rel=1e-8)
    assert [q.value for q in found.quantiles] == pytest.approx(list(np.quantile(truth, SHARES)), rel=1e-7)


@pytest.mark.parametrize("method", ["krylov", "power"])
def test_methods_for_the_largest_value_only(method) -> None:
    for layer in EVERY.values():
        truth = truth_of(layer)
        found = of_convolution(layer, Settings(method=method, steps=150))
        assert found.sigma_max.value == pytest.approx(truth[0], rel=1e-5 if method == "krylov" else 1e-2)
        assert abs(found.sigma_max.value - truth[0]) <= found.sigma_max.error + 1e-12 * truth[0]
        assert np.isnan(found.std.value)
        assert found.std.error == float("inf")
        assert found.frobenius == pytest.approx(np.linalg.norm(truth), rel=1e-12)
        assert found.pairs > 0


def test_extrapolation_and_its_error() -> None:
    covered, number = 0, 0
    for seed in range(14):
        rng = np.random.default_rng(seed)
        co, ci = (int(entry) for entry in rng.integers(2, 7, 2))
        layer = make(
            co, ci, 3, ((1 + seed % 2) * int(rng.integers(10, 13)),) * 2, seed=seed, stride=1 + seed % 2
        )
        truth = truth_of(layer)
        found = of_convolution(layer, Settings(method="extrapolate"))
        number += 1
        covered += abs(found.std.value - truth.std()) <= found.std.error
        assert found.std.value == pytest.approx(truth.std(), rel=3e-3)
    assert covered >= number - 1


def test_extrapolation_of_trained_kernels(assets) -> None:
    """The quick look: within 0.1 % of the cut, whose error is a hundredth of that."""
    layers = resnet_layers(assets)
    for name in ("layer1.1.conv1", "layer2.1.conv2"):
        quick = of_convolution(layers[name], Settings(method="extrapolate"))
        exact = of_convolution(layers[name], Settings(method="cut", quantiles=False))
        assert exact.std.error < 5e-4 * exact.std.value
        assert quick.std.value == pytest.approx(exact.std.value, rel=1e-3)
        assert abs(quick.std.value - exact.std.value) <= quick.std.error


def test_stochastic_quadrature() -> None:
    covered, off = [], []
    for seed in range(16):
        mode = ("reflect", "replicate")[seed % 2]
        layer = make(6, 5, 3, (10, 9), seed=seed, mode=mode, stride=1 + seed % 3 // 2)
        truth = truth_of(layer)
        found = of_convolution(layer, Settings(method="quadrature", seed=seed))
        covered.append(abs(found.std.value - truth.std()) <= found.std.error)
        off.append(found.mean.value / truth.mean() - 1)
        assert found.sigma_max.value == pytest.approx(truth[0], rel=1e-5)
    assert sum(covered) >= 15
    assert np.abs(off).max() < 0.01


def test_quadrature_converges_with_probes() -> None:
    layer = make(3, 3, 3, (8, 8), mode="reflect")
    truth = truth_of(layer).sum()
    errors = [
        np.mean(
            [
                abs(
                    quadrature.lanczos(layer.operator(), layer.stencil().squares, n, 40, seed).total.value
                    - truth
                )
                for seed in range(5)
            ]
        )
        for n in (6, 96)
    ]
    assert errors[1] < errors[0] / 2


def test_sigma_max_is_proved_by_one_count() -> None:
    for layer in LAYERS.values():
        ranks = Ranks(Cut(layer.stencil()))
        found = largest(layer.operator(), ranks)
        truth = truth_of(layer)[0]
        assert found.proved
        assert abs(found.sigma.value - truth) <= found.sigma.error * (1 + 1e-6)
        assert found.sigma.error <= BRACKET / 2 * truth * (1 + 1e-5)
        assert ranks.made <= 2


def test_the_proof_notices_a_value_that_lanczos_missed() -> None:
    """A start without any share in the largest vector: the stop is satisfied with the second value."""
    weight = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    weight[0, 0] = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3)))
    weight[1, 1] = weight[0, 0] * (1 - 1e-5)
    layer = convolution(weight, (9, 9), padding=1)
    truth = truth_of(layer)[0]
    found = largest(layer.operator(), Ranks(Cut(layer.stencil())))
    assert found.proved
    assert abs(found.sigma.value - truth) <= found.sigma.error * (1 + 1e-6)


def test_the_smallest_value() -> None:
    for name in ("plain", "strided", "grouped", "transposed"):
        layer = LAYERS[name]
        truth = truth_of(layer)[-1]
        found = Ranks(Cut(layer.stencil())).smallest(0.01)
        assert abs(found.value - truth) <= found.error + 1e-12
        assert found.error <= 0.006 * truth
    # more outputs than inputs at each place, and yet a kernel in the left null space
    assert truth_of(LAYERS["unpadded"])[-1] < 1e-14
    singular = make(4, 4, 3, (8, 8)).stencil()
    singular.kernel[0, 0] = singular.kernel[0, 1]
    for stencil in (singular, LAYERS["unpadded"].stencil()):
        found = Ranks(Cut(stencil)).smallest()
        assert found.value == 0.0
        assert 0 < found.error < 1e-6


@pytest.mark.parametrize(
    ("method", "name", "hint"),
    [("fft", "plain", "cut"), ("cut", "reflect", "exact"), ("extrapolate", "circular", "auto")],
)
def test_a_method_that_does_not_apply_says_which_do(method, name, hint) -> None:
    with pytest.raises((UsageError, NumericalError), match=hint):
        of_convolution(EVERY[name], Settings(method=method))


def test_exact_beyond_the_memory() -> None:
    with pytest.raises(NumericalError, match=r"GB and about"):
        of_convolution(LAYERS["plain"], Settings(method="exact", memory=1e6))


def test_auto_with_little_time_or_memory() -> None:
    layer = make(16, 16, 3, (32, 32))
    assert spectra.choose(layer.stencil(), Settings()).method == "cut"
    assert spectra.choose(layer.stencil(), Settings(seconds=0.01)).method == "extrapolate"
    reflect = make(16, 16, 3, (32, 32), mode="reflect")
    assert spectra.choose(reflect.stencil(), Settings()).method == "quadrature"
    assert spectra.choose(make(2, 2, 3, (4, 4)).stencil(), Settings()).method == "exact"
    wide = cost.of(make(64, 64, 3, (32, 32)).stencil())
    assert wide.exact_bytes > 5e10
    assert wide.exact > 1000 * wide.total / 60


def test_effective_rank() -> None:
    for name in ("plain", "strided", "grouped", "circular", "reflect"):
        p = truth_of(EVERY[name]) / truth_of(EVERY[name]).sum()
        expected = np.exp(-(p * np.log(p)).sum())
        assert of_convolution(EVERY[name], Settings(method="exact")).effective_rank.value == pytest.approx(
            expected
        )
        if name in LAYERS:
            found = of_convolution(EVERY[name], Settings(method="cut")).effective_rank
            assert found.value == pytest.approx(expected, rel=2e-3)
            assert abs(found.value - expected) <= found.error
        if name == "reflect":
            found = of_convolution(EVERY[name], Settings(method="quadrature")).effective_rank
            assert abs(found.value - expected) <= found.error
    assert of_matrix(torch.eye(5)).effective_rank.value == pytest.approx(5)


def test_zero_and_constant_kernels() -> None:
    zero = of_convolution(convolution(torch.zeros(2, 2, 3, 3), (9, 9), padding=1))
    assert zero.sigma_max.value == zero.std.value == zero.frobenius == 0.0
    weight = torch.zeros(3, 3, 3, 3)
    weight[range(3), range(3), 1, 1] = 2.0
    for method in ("auto", "cut", "exact"):
        found = of_convolution(convolution(weight, (9, 9), padding=1), Settings(method=method))
        assert found.sigma_max.value == pytest.approx(2, rel=3e-6)
        assert found.std.value == pytest.approx(0, abs=1e-5)
        assert found.std.value <= found.std.error + 1e-7


def test_averaging_kernel() -> None:
    """A mean over three taps without padding: sigma_max below one, and sin(3x/2) / (3 sin(x/2)) on a torus."""
    weight = torch.full((1, 1, 3), 1 / 3, dtype=torch.float64)
    found = of_convolution(convolution(weight, (30,), padding=1, mode="circular"))
    x = np.pi * np.arange(1, 30) / 30
    expected = np.sort(np.abs(np.r_[1.0, np.sin(3 * x) / (3 * np.sin(x))]))[::-1]
    assert found.values == pytest.approx(expected, abs=1e-14)
    assert of_convolution(convolution(weight, (30,), padding=1)).sigma_max.value < 1


def test_matrices() -> None:
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.standard_normal((7, 12)))
    found = of_matrix(matrix)
    assert found.values == pytest.approx(np.linalg.svd(matrix.numpy(), compute_uv=False), rel=1e-8)
    assert found.shape == (7, 12)
    assert found.frobenius == pytest.approx(float(matrix.norm()), rel=1e-14)
    with pytest.raises(NumericalError, match="NaN"):
        of_matrix(matrix * float("nan"))


def test_nan_in_a_kernel() -> None:
    layer = make(2, 2, 3, (6, 6))
    with pytest.raises(NumericalError, match="NaN"):
        of_convolution(replace(layer, weight=layer.weight * float("nan")))


def resnet_layers(assets) -> dict[str, Convolution]:
    state = torch.load(assets / "checkpoints" / "cifar10-resnet20.th", map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    layers = {}
    for name, weight in state.items():
        if weight.ndim == 4:
            stage = int(name[5]) if name.startswith("layer") else 1
            stride = 2 if name in ("layer2.0.conv1.weight", "layer3.0.conv1.weight") else 1
            size = (64 >> stage) * stride
            layers[name.removesuffix(".weight")] = convolution(weight, (size, size), stride=stride, padding=1)
    return layers


@pytest.mark.parametrize(
    ("name", "top", "std", "circular_top", "circular_std", "kernel_top", "kernel_std"),
    [
        ("layer3.1.conv1", 6.06, 1.24, 6.32, 1.34, 3.31, 0.69),
        ("layer3.0.conv1", 4.33, 0.89, 8.25, 1.39, 3.20, 0.72),
        ("conv1", 10.65, 2.36, 10.69, 2.39, 4.25, 1.42),
    ],
)
def test_trained_layers_of_a_resnet(
    assets, name, top, std, circular_top, circular_std, kernel_top, kernel_std
) -> None:
    from specdiag.linalg import circular

    layer = resnet_layers(assets)[name]
    found = of_convolution(layer, Settings(quantiles=False))
    assert round(found.sigma_max.value, 2) == top
    assert round(found.std.value, 2) == std
    published = circular.singular_values(circular.unstrided(layer.stencil()))
    assert round(float(published[0]), 2) == circular_top
    assert round(float(published.std()), 2) == circular_std
    kernel = of_matrix(layer.weight.flatten(1))
    assert round(kernel.sigma_max.value, 2) == kernel_top
    assert round(kernel.std.value, 2) == kernel_std


def test_module_of_a_network() -> None:
    module = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
    found = of_convolution(from_module(module, (9, 9)))
    assert found.count == 243
    assert dense.singular_values(from_module(module, (9, 9)).stencil())[0] == pytest.approx(
        found.sigma_max.value
    )


def test_extrapolation_needs_room() -> None:
    with pytest.raises(NumericalError, match="extrapolated"):
        extrapolate.total(make(3, 3, 3, (4, 4)).stencil())
