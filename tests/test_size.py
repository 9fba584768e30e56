"""Spectra without the matrix: known answers, the stored route as reference, errors that hold, memory that is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import batch_of, linear_model, small_cnn, with_singular_values
from torch import nn

import specdiag
from specdiag import plugins, store
from specdiag.errors import UsageError
from specdiag.jacobian.gram import by_gram, gram_values
from specdiag.jacobian.operator import Products, block_rows
from specdiag.jacobian.rows import by_autograd
from specdiag.jacobian.topk import by_krylov, group_size
from specdiag.linalg import blocked, svd
from specdiag.linalg.operators import adjoint_error
from specdiag.model import Model
from specdiag.options import build_options

X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


class Attention(nn.Module):
    """Patches, attention, GELU, LayerNorm: nothing that has a rule of its own when frozen."""

    def __init__(self, outputs: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(2, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(x).flatten(2).mT)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(nn.functional.gelu(tokens).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(16, 9, batch_first=True)
        self.head = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x.flatten(2).mT.reshape(len(x), 8, 16))[0][:, -1])


NETWORKS = {
    "convolutions": small_cnn,
    "few features": lambda: small_cnn(classes=30),
    "attention": Attention,
    "recurrent": Recurrent,
    "autoencoder": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 20), nn.Tanh(), nn.Linear(20, 140)),
}


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return Model(NETWORKS[request.param](), (2, 8, 8), dtype=torch.float64)


def reference(model: Model) -> torch.Tensor:
    return torch.linalg.svdvals(by_autograd(model, X).matrix)


def test_products_are_those_of_the_matrix(model: Model) -> None:
    matrix = by_autograd(model, X).matrix
    products = Products(model, X)
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(3, model.inputs, generator=draw).double()
    u = torch.randn(3, model.outputs, generator=draw).double()
    pushed, pulled = torch.einsum("nkd,nd->nk", matrix, v), torch.einsum("nkd,nk->nd", matrix, u)
    assert float((products.push(v) - pushed).abs().max()) < 1e-12 * float(pushed.abs().max())
    assert float((products.pull(u) - pulled).abs().max()) < 1e-12 * float(pulled.abs().max())
    assert adjoint_error(products.operator(), draw) < 1e-13


def test_one_sample_takes_any_number_of_vectors(model: Model) -> None:
    products = Products(model, X[:1], copies=4)
    matrix = by_autograd(model, X[:1]).matrix[0]
    v = torch.randn(7, model.inputs, generator=torch.Generator().manual_seed(0)).double()
    expected = v @ matrix.T
    assert float((products.push(v) - expected).abs().max()) < 1e-12 * float(expected.abs().max())
    assert torch.allclose(products.pull(expected), expected @ matrix, rtol=1e-10, atol=1e-12)


def test_convolutions_are_frozen_and_attention_is_differentiated_twice() -> None:
    assert Products(Model(small_cnn(), (2, 8, 8), dtype=torch.float64), X).frozen
    assert not Products(Model(Attention(), (2, 8, 8), dtype=torch.float64), X).frozen


def test_gram_errors_hold(model: Model) -> None:
    expected, found = reference(model), by_gram(model, X)
    assert found.values.shape == expected.shape
    assert bool(((found.values - expected).abs() <= found.error).all())
    large = expected > 1e-3 * expected[:, :1]
    assert float(((found.values - expected).abs() / expected)[large].max()) < 1e-8


def test_krylov_finds_the_largest(model: Model) -> None:
    expected = reference(model)
    starts = torch.randn(3, model.outputs, generator=torch.Generator().manual_seed(0)).double()
    found = by_krylov(model, X, 3, starts)
    gap = (found.values - expected[:, :3]).abs()
    assert bool((gap <= found.error).all())
    assert float((gap / expected[:, :1]).max()) < 1e-10
    assert bool(found.converged.all())
    matrix = by_autograd(model, X).matrix
    scaled = torch.einsum("nkd,njd->njk", matrix, found.right) - found.values[..., None] * found.left
    assert float(scaled.abs().max() / expected.max()) < 1e-6


def test_known_singular_values_and_the_loss_of_small_ones() -> None:
    values = np.array([10.0, 3.0, 1.0, 1e-2, 1e-6])
    weight = with_singular_values(values, 5, 40)
    x = torch.rand(2, 40)
    exact = by_gram(linear_model(weight), x.double())
    assert np.abs(exact.values.numpy() - values).max() < 1e-6
    single = by_gram(linear_model(weight, dtype=torch.float32), x)
    off = (single.values[0] - torch.from_numpy(values)).abs()
    assert float((off / torch.from_numpy(values))[:3].max()) < 1e-4
    assert bool((off <= single.error[0]).all())
    # the smallest is below sqrt(eps) sigma_max: its error must say that it is lost
    assert float(single.error[0, -1]) > values[-1]


def test_the_skew_part_shows_the_error_of_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 12, 60, generator=generator, dtype=torch.float64)
    matrix = matrix * torch.logspace(0, -3, 12, dtype=torch.float64)[:, None]
    noise = 1e-5 * torch.randn(4, 12, 12, generator=generator, dtype=torch.float64)
    values, error = gram_values(matrix @ matrix.mT + noise, torch.float64, 60)
    off = (values - torch.linalg.svdvals(matrix)).abs()
    assert float((off / error).max()) < 2
    assert float((off / error).max()) > 0.01


def test_a_constant_network() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 3, dtype=x.dtype)

    model = Model(Constant(), (2, 8, 8), dtype=torch.float64)
    assert float(by_gram(model, X).values.max()) == 0
    assert float(by_krylov(model, X, 2, torch.ones(3, 3).double()).values.max()) < 1e-12


def test_qr_in_blocks_is_the_qr_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_VALUES", 2000)
    values = np.geomspace(1, 1e-9, 20)
    matrix = torch.from_numpy(with_singular_values(values, 20, 900))[None]
    whole = svd.svd(matrix, top=4)
    monkeypatch.setattr(svd, "LARGE", 100)
    for flipped in (False, True):
        parts = svd.svd(matrix.mT if flipped else matrix, top=4)
        assert np.abs(parts.values[0].numpy() / values - 1).max() < 1e-6
        assert parts.left is not None
        assert parts.right is not None
        assert whole.left is not None
        short, long = (parts.right, parts.left) if flipped else (parts.left, parts.right)
        assert float(((short * whole.left).sum(1).abs() - 1).abs().max()) < 1e-9
        assert float((long.mT @ long - torch.eye(4)).abs().max()) < 1e-9
    assert torch.allclose(svd.svd(matrix).values, parts.values, rtol=1e-6)


@pytest.mark.parametrize("layer", ["logits", "features", "4"])
def test_routes_agree_through_the_analyzer(layer: str) -> None:
    analyzer = plugins.load("analyzer", "spectrum")
    model = Model(small_cnn(), (2, 8, 8), dtype=torch.float64)
    batch = batch_of(X, torch.tensor([0, 1, 2])).padded(8)
    stored, gram, krylov = (
        analyzer.compute(model, batch, build_options(analyzer, {"layer": layer, **given}))
        for given in ({"top": 2}, {"method": "gram"}, {"method": "krylov", "top": 2})
    )
    scale = float(stored["singular_values"].max())
    for name in (
        "singular_values",
        "sigma_max",
        "frobenius",
        "stable_rank",
        "logits",
        "predicted",
        "lead",
        "near_kink",
    ):
        assert torch.allclose(stored[name].double(), gram[name].double(), rtol=1e-6, atol=1e-7 * scale), name
    assert krylov["singular_values"].shape == (8, 2)
    assert torch.allclose(stored["singular_values"][:, :2], krylov["singular_values"], rtol=1e-9)
    for name in ("left_vectors", "right_vectors"):
        assert torch.allclose(stored[name], krylov[name], atol=1e-5), name
    assert set(gram) | set(krylov) <= set(analyzer.arrays)


def test_results_state_what_is_lost(samples) -> None:
    model = specdiag.load_model(samples / "digits-standard.pt", device="cpu")
    data = specdiag.load_data("digits", samples=5)
    exact = specdiag.analyze(model, data, "spectrum", layer="conv1")
    gram = specdiag.analyze(model, data, "spectrum", method="gram", layer="conv1")
    off = np.abs(gram.singular_values.values - exact.singular_values.values)
    assert (off <= gram.error.values + 1e-5 * exact.singular_values.values[:, :1]).all()
    assert "condition_median" not in store.provenance(gram)["metrics"]
    top = specdiag.analyze(model, data, "spectrum", method="krylov", top=3)
    assert set(store.provenance(top)["metrics"]) == {"sigma_max_mean", "sigma_max_p95"}


@pytest.mark.parametrize(
    ("given", "text"),
    [({"method": "krylov"}, "how many"), ({"method": "gram", "top": 3}, "no singular vectors")],
)
def test_options_that_do_not_fit(given: dict[str, object], text: str) -> None:
    analyzer = plugins.load("analyzer", "spectrum")
    model = Model(small_cnn(), (2, 8, 8), dtype=torch.float64)
    with pytest.raises(UsageError, match=text):
        analyzer.compute(model, batch_of(X), build_options(analyzer, given))


def test_large_networks_go_alone() -> None:
    class Large:
        dtype = torch.float32

        class facts:
            activations = 32_000_000

    assert block_rows(Large()) == 4  # type: ignore[arg-type]
    assert group_size(Large(), 8) == 2  # type: ignore[arg-type]
    Large.facts.activations = 200_000_000
    assert block_rows(Large()) == 1  # type: ignore[arg-type]
    assert group_size(Large(), 8) == 1  # type: ignore[arg-type]
