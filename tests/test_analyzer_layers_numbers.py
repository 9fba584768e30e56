"""The analyzer `layers` on networks whose operators are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from conftest import ROOT
from torch import nn

from specdiag import figures
from specdiag.analyzers import _layers_uses
from specdiag.analyzers._layers_rows import rows_of
from specdiag.analyzers._layers_uses import Use
from specdiag.analyzers.layers import ANALYZER, SHARES, Options
from specdiag.errors import ModelError, NumericalError
from specdiag.linalg.layers import Convolution, convolution
from specdiag.linalg.spectra import Settings
from specdiag.model import Model, ModelInfo, Normalisation
from specdiag.schema import build
from specdiag.weights import Weights, WeightsTask, run_weights


def analyse(
    network: nn.Module | None,
    shape: tuple[int, ...] | None,
    tensors: dict[str, torch.Tensor] | None = None,
    model: Model | None = None,
    x: torch.Tensor | None = None,
    **options: Any,
) -> xarray.Dataset:
    module = None if network is None else network.eval().requires_grad_(False)
    named = MappingProxyType(tensors or ({} if module is None else dict(module.state_dict())))
    weights = Weights(module, named, shape, ModelInfo(), Normalisation(), model, x)
    return run_weights(WeightsTask(weights, ANALYZER, build(Options, options), 0))


def ids(data: xarray.Dataset) -> dict[str, str]:
    return {entry["id"]: entry["text"] for entry in ANALYZER.checks(data)}


def chain(*matrices: np.ndarray) -> nn.Sequential:
    layers: list[nn.Module] = []
    for matrix in matrices:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight.data = torch.from_numpy(matrix).float()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_linear_layers_have_their_singular_values() -> None:
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.standard_normal((6, 4)))[0], np.linalg.qr(rng.standard_normal((4, 4)))[0]
    data = analyse(chain((u * [4.0, 3.0, 2.0, 1.0]) @ v.T, np.eye(3, 6) * 2), (4,))
    assert list(data.layer.values) == ["0", "2"]
    assert data.sigma_max.values == pytest.approx([4, 2], rel=1e-6)
    assert data.sigma_min.values == pytest.approx([1, 2], rel=1e-6)
    assert data.sigma_std.values == pytest.approx([np.std([4, 3, 2, 1]), 0], abs=1e-6)
    assert data.stable_rank.values == pytest.approx([30 / 16, 3], rel=1e-6)
    assert data.condition.values == pytest.approx([4, 1], rel=1e-6)
    p = np.array([4, 3, 2, 1]) / 10
    assert data.effective_rank.values == pytest.approx([np.exp(-(p * np.log(p)).sum()), 3], rel=1e-6)
    assert data.kernel_norm.values == pytest.approx([4, 2], rel=1e-6)
    assert data.lipschitz_bound.values == pytest.approx([8], rel=1e-5)
    assert ANALYZER.summarise(data)["log_spectral_complexity"][0] == pytest.approx(np.log10(8), rel=1e-6)


def test_convolutions_are_the_operators_of_the_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1),
    ).double()
    data = analyse(network, (2, 9, 8))
    x = torch.zeros(1, 2, 9, 8, dtype=torch.float64)
    places = iter(range(3))
    for module in network:
        if not isinstance(module, nn.ReLU):
            place = next(places)
            basis = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape[1:])
            matrix = (module(basis) - module(torch.zeros_like(x))).flatten(1).T
            truth = torch.linalg.svdvals(matrix).numpy()
            assert data.sigma_max.values[place] == pytest.approx(truth[0], rel=1e-6)
            assert data.sigma_std.values[place] == pytest.approx(truth.std(), rel=1e-6)
            assert data.frobenius.values[place] == pytest.approx(np.linalg.norm(truth), rel=1e-9)
            assert (data.outputs.values[place], data.inputs.values[place]) == tuple(matrix.shape)
        x = module(x)
    assert next(network.parameters()).dtype == torch.float64, "the network is left as it was"


def test_a_layer_used_twice_and_at_two_sizes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(self.conv(x))[..., ::2, ::2])

    data = analyse(Twice(), (2, 8, 8))
    assert list(data.layer.values) == ["conv", "conv#2", "conv#3"]
    assert list(data.inputs.values) == [128, 128, 32]
    assert data.sigma_max.values[0] == data.sigma_max.values[1] != data.sigma_max.values[2]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(x))


def test_embeddings_and_attention_projections() -> None:
    torch.manual_seed(1)
    network = Attention()
    data = analyse(network, (5,))
    names = [f"encoder.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    assert list(data.layer.values) == ["embed", *names, "encoder.linear1", "encoder.linear2"]
    weight = network.encoder.self_attn.in_proj_weight
    truth = [float(torch.linalg.svdvals(part)[0]) for part in weight.chunk(3)]
    assert data.sigma_max.values[1:4] == pytest.approx(truth, rel=1e-5)
    reasons = dict(zip(data.skipped.values, data.reason.values, strict=True))
    assert set(reasons) == {"encoder.norm1", "encoder.norm2"}
    assert "no linear map" in reasons["encoder.norm1"]
    assert torch.backends.mha.get_fastpath_enabled()


def with_batchnorm() -> nn.Sequential:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    network[1].running_var.copy_(torch.tensor([0.25, 1.0, 4.0]))
    network[1].weight.data.copy_(torch.tensor([1.0, -2.0, 3.0]))
    return network


def test_batchnorm_left_out_listed_or_folded() -> None:
    plain = analyse(with_batchnorm(), (2, 6, 6))
    assert list(plain.layer.values) == ["0"]
    assert "--fold-batchnorm" in str(plain.reason.values[0])
    listed = analyse(with_batchnorm(), (2, 6, 6), norms=True)
    assert listed.sigma_max.values[1] == pytest.approx(2, rel=1e-4)
    assert listed.sigma_min.values[1] == pytest.approx(1.5, rel=1e-4)
    assert listed.outputs.values[1] == 108
    folded = analyse(with_batchnorm(), (2, 6, 6), fold_batchnorm=True)
    assert list(folded.layer.values) == ["0"]
    network = with_batchnorm()
    scale = network[1].weight / torch.sqrt(network[1].running_var + network[1].eps)
    network[0].weight.data *= scale.detach().reshape(-1, 1, 1, 1)
    by_hand = analyse(network[:1], (2, 6, 6))
    assert folded.sigma_max.values == pytest.approx(by_hand.sigma_max.values, rel=1e-5)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data = torch.tensor([[0.0, 0.37], [0.0, 0.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


def test_branches_add_in_the_bound() -> None:
    """The product of norms, 0.37, is no bound of I + A, whose norm is 1.2; the sum 1.37 is."""
    network = Residual()
    data = analyse(network, (2,))
    truth = float(torch.linalg.svdvals(torch.eye(2) + network.linear.weight)[0])
    assert data.lipschitz_bound.values[0] == pytest.approx(1.37, rel=1e-5)
    assert data.sigma_max.values[0] < truth < data.lipschitz_bound.values[0]
    assert ANALYZER.summarise(data)["log_spectral_complexity"][0] < 0


def test_no_bound_where_the_walk_fails() -> None:
    data = analyse(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), (4,))
    assert np.isnan(data.lipschitz_bound.values[0])
    assert "lipschitz_bound" not in ANALYZER.summarise(data)
    assert "softmax" in ids(data)["SD320"]


def test_the_bound_beside_the_jacobian() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval().requires_grad_(False)
    model, x = Model(network, (6,)), torch.rand(20, 6)
    data = analyse(network, (6,), model=model, x=x)
    jacobians = torch.stack([torch.autograd.functional.jacobian(network, row) for row in x])
    truth = float(torch.linalg.svdvals(jacobians).max())
    assert data.jacobian_sigma_max.values[0] == pytest.approx(truth, rel=1e-5)
    assert ANALYZER.summarise(data)["bound_looseness"][0] >= 1


def test_weights_without_an_architecture() -> None:
    torch.manual_seed(4)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    tensors = {"a.weight": conv.weight.detach(), "b.weight": torch.randn(5, 7), "b.bias": torch.randn(5)}
    data = analyse(None, None, tensors=tensors)
    assert list(data.layer.values) == ["a", "b"]
    assert np.isfinite(data.kernel_norm.values).all()
    assert np.isnan(data.sigma_max.values[0])
    assert "--input-size" in ids(data)["SD332"]
    sized = analyse(None, (3, 8, 8), tensors=tensors)
    assert sized.sigma_max.values[0] == pytest.approx(analyse(conv, (3, 8, 8)).sigma_max.values[0], rel=1e-6)
    assert "SD333" in ids(sized)
    kernels = analyse(None, None, tensors={"a.weight": conv.weight.detach()})
    assert "sigma_max" not in kernels
    assert "kernels" in ANALYZER.sentence(kernels)
    assert ANALYZER.table(kernels)[1]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_and_quantised_weights() -> None:
    torch.manual_seed(5)
    dense = torch.randn(6, 5) * (torch.rand(6, 5) > 0.5)
    quantised = torch.quantize_per_tensor(torch.randn(4, 3), 0.05, 0, torch.qint8)
    data = analyse(None, None, tensors={"s": dense.to_sparse(), "c": dense.to_sparse_csr(), "q": quantised})
    truth = [float(torch.linalg.svdvals(part)[0]) for part in (dense, dense, quantised.dequantize())]
    assert data.sigma_max.values == pytest.approx(truth, rel=1e-5)


def test_nan_weights_name_the_layer() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    network[1].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"Layer '1'.*NaN"):
        analyse(network, (2, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"method": "exact", "memory": 1e-6}, "GB and about"), ({"method": "fft"}, "circular padding")],
)
def test_a_method_that_gives_way_says_so(options, words) -> None:
    torch.manual_seed(6)
    data = analyse(nn.Conv2d(4, 4, 3, padding=1), (4, 14, 14), **options)
    assert np.isfinite(data.sigma_std.values).all()
    assert words in ids(data)["SD331"]


def test_unknown_modules_are_listed() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), Scale(), nn.PReLU())
            self.spare = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    found = _layers_uses.of_network(Odd(), (4,), norms=False)
    assert [use.name for use in found.uses] == ["body.0"]
    assert set(found.skipped) == {"body.1", "body.2", "spare"}
    assert "never called" in found.skipped["spare"]


def test_a_wrong_input_size_leaves_nothing_behind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="--input-size"):
        _layers_uses.of_network(network, (3, 9, 9), norms=False)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_figures_and_texts() -> None:
    torch.manual_seed(7)
    one, two = (
        analyse(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2)), (1, 8, 8)
        )
        for _ in range(2)
    )
    for runs, panels in (({"a": one}, 2), ({"a": one, "b": two}, 3)):
        figure = figures.new_figure()
        with figures.style():
            ANALYZER.plot(runs, figure)
        assert len(figure.axes) == panels
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    gap = (two.sigma_std - one.sigma_std).values
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert f"+{gap[gap > 0].sum():.3g} in {(gap > 0).sum()}" in legend[0]
    titles, rows = ANALYZER.table(one)
    assert all(len(row) == len(titles) for row in rows)
    assert ANALYZER.sentence(one).endswith(".")
    assert set(ANALYZER.summarise(one)) <= set(ANALYZER.metrics)
    assert set(one.data_vars) <= set(ANALYZER.arrays)


SMALL = (
    ("conv1", 32, 1),
    ("layer3.0.conv1", 16, 2),
    *((f"layer3.{block}.conv{number}", 8, 1) for block, number in ((0, 2), (1, 1), (1, 2), (2, 1), (2, 2))),
)


def trained(assets: Path, name: str, size: int, stride: int) -> Convolution:
    state = torch.load(assets / "checkpoints" / "cifar10-resnet20.th", map_location="cpu", weights_only=True)
    weight = state["state_dict"][f"module.{name}.weight"]
    return convolution(weight, (size, size), stride=stride, padding=1)


def recorded(name: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / "layer-truth.json"
    layers = json.loads(path.read_text())["layers"] if path.exists() else {}
    if name not in layers:
        pytest.skip("no dense truth recorded")
    return dict(layers[name])


@pytest.mark.parametrize(("name", "size", "stride"), SMALL)
def test_trained_layers_against_their_dense_truth(assets: Path, name: str, size: int, stride: int) -> None:
    """All layers with up to 4,096 values; the truth is that of benchmarks/layer_truth.py."""
    exact = recorded(name)
    use = Use(name, (name,), layer=trained(assets, name, size, stride))
    found = rows_of([use], Settings(shares=SHARES))[0].spectrum
    assert found is not None
    assert found.count == exact["count"] <= 4096
    assert found.sigma_max.value == pytest.approx(exact["sigma_max"], rel=1e-5)
    assert found.std.value == pytest.approx(exact["std"], rel=1e-3)
    assert abs(found.sigma_max.value - exact["sigma_max"]) <= found.sigma_max.error * (1 + 1e-6)
    assert abs(found.std.value - exact["std"]) <= found.std.error
    assert abs(found.mean.value - exact["mean"]) <= found.mean.error
    if exact["sigma_min"] > 1e-6 * exact["sigma_max"]:
        assert abs(found.sigma_min.value - exact["sigma_min"]) <= found.sigma_min.error
    for share, estimate in zip(SHARES, found.quantiles, strict=True):
        assert abs(estimate.value - exact["quantiles"][round(1000 * share)]) <= estimate.error


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [SMALL[0], *(pytest.param(*entry, marks=pytest.mark.slow) for entry in SMALL[1:2])],
)
def test_the_recorded_truth_is_the_dense_spectrum(assets: Path, name: str, size: int, stride: int) -> None:
    """From the matrix that torch's convolution has, not from the stencil that the record was made with."""
    exact = recorded(name)
    layer = trained(assets, name, size, stride)
    matrix = layer.operator().dense().double()
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values = torch.linalg.eigvalsh(matrix.T @ matrix).clamp_min(0).sqrt().numpy()
    assert values[-1] == pytest.approx(exact["sigma_max"], rel=1e-10)
    assert values.std() == pytest.approx(exact["std"], rel=1e-8)
    assert values.mean() == pytest.approx(exact["mean"], rel=1e-8)
    assert np.quantile(values, np.linspace(0, 1, 1001))[50:] == pytest.approx(
        exact["quantiles"][50:], rel=1e-7
    )
