"""Jacobians: known answers, a slow float64 oracle, regression, differences, invariance to the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import batch_of, linear_model, oracle_jacobian, small_cnn, with_singular_values
from torch import nn

from specdiag import plugins
from specdiag.errors import UsageError
from specdiag.jacobian.difference import by_difference
from specdiag.jacobian.regression import by_regression, default_count, make_design
from specdiag.jacobian.rows import by_autograd
from specdiag.linalg.svd import svd
from specdiag.loading.networks.cnn import Cnn7
from specdiag.model import Model, Normalisation
from specdiag.options import build_options
from specdiag.sampling import Draws

X = torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def cnn(dtype: torch.dtype = torch.float64, **kwargs: object) -> Model:
    return Model(small_cnn(), (2, 8, 8), dtype=dtype, **kwargs)  # type: ignore[arg-type]


def relative(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.abs(a.double().numpy() - b).max() / np.abs(b).max())


def test_linear_network_has_its_weight_as_jacobian() -> None:
    values = np.array([5.0, 2.0, 0.1])
    weight = with_singular_values(values, 3, 20)
    model = linear_model(weight, np.ones(3))
    x = torch.rand(4, 20, dtype=torch.float64)
    found = by_autograd(model, x)
    assert relative(found.matrix, np.broadcast_to(weight, (4, 3, 20))) < 1e-15
    assert float((svd(found.matrix).values - torch.from_numpy(values)).abs().max()) < 1e-14


def test_orthogonal_network_has_all_singular_values_one() -> None:
    torch.manual_seed(0)
    layers = [nn.init.orthogonal_(nn.Linear(16, 16, bias=False).weight) for _ in range(3)]
    model = linear_model((layers[2] @ layers[1] @ layers[0]).detach().double().numpy())
    values = svd(by_autograd(model, torch.rand(2, 16).double()).matrix).values
    assert float((values - 1).abs().max()) < 1e-6


def test_equals_the_oracle_through_the_normalisation() -> None:
    model = cnn(normalisation=Normalisation("channel", (0.4, 0.5), (0.2, 0.3)))
    mean, std = torch.tensor([0.4, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.3], dtype=torch.float64)
    inner = oracle_jacobian(small_cnn(), (X - mean.view(1, 2, 1, 1)) / std.view(1, 2, 1, 1))
    expected = inner / np.repeat(std.numpy(), 64)
    assert relative(by_autograd(model, X).matrix, expected) < 1e-13


@pytest.mark.parametrize("layer", ["features", "4", "0"])
def test_other_layers(layer: str) -> None:
    model = cnn()
    network = small_cnn().double().eval()
    stop = {"features": 10, "4": 5, "0": 1}[layer]
    assert relative(by_autograd(model, X, layer).matrix, oracle_jacobian(network[:stop], X)) < 1e-13


def test_rows_through_the_features_when_outputs_are_more() -> None:
    torch.manual_seed(0)
    wide = small_cnn(classes=30)
    model = Model(wide, (2, 8, 8), dtype=torch.float64)
    assert model.facts.features < model.outputs
    found = by_autograd(model, X)
    assert relative(found.matrix, oracle_jacobian(small_cnn(classes=30), X)) < 1e-13
    assert torch.allclose(found.outputs, model.logits(X))


def test_a_constant_network_has_a_zero_jacobian() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 3, dtype=x.dtype)

    model = Model(Constant(), (2, 8, 8), dtype=torch.float64)
    assert torch.equal(by_autograd(model, X).matrix, torch.zeros(5, 3, 128, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batches_of_one_seven_and_all_agree(dtype: torch.dtype) -> None:
    model = cnn(dtype)
    x = torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    together = svd(by_autograd(model, x).matrix).values
    near = by_autograd(model, x).near_kink > 0
    for size in (1, 7):
        parts = torch.cat(
            [svd(by_autograd(model, x[i : i + size]).matrix).values for i in range(0, 16, size)]
        )
        error = ((parts - together).abs() / together[:, :1]).amax(1)
        assert float(error[~near].max()) < (1e-13 if dtype == torch.float64 else 1e-5)


def test_regression_with_fixed_activations_is_exact() -> None:
    model = cnn()
    design = make_design(Draws(0), model.inputs, default_count(model.inputs), 0.05, model.device)
    exact = by_autograd(model, X)
    found = by_regression(model, X, design)
    assert relative(found.matrix, exact.matrix.numpy()) < 1e-10
    assert float((found.r2 - 1).abs().max()) < 1e-12
    # the bias is that of the affine map through the point: f(x) = W x + b
    at_point = torch.einsum("nkd,nd->nk", found.matrix, X.flatten(1)) + found.bias
    assert torch.allclose(at_point, exact.outputs, atol=1e-10)


def test_regression_with_free_activations_says_how_linear_the_network_is() -> None:
    model = cnn()
    near, far = (make_design(Draws(0), model.inputs, 400, radius, model.device) for radius in (1e-4, 3.0))
    exact = by_autograd(model, X).matrix
    close, wide = (
        by_regression(model, X, near, activations="free"),
        by_regression(model, X, far, activations="free"),
    )
    assert relative(close.matrix, exact.numpy()) < 1e-6
    assert bool((close.r2 > 0.999999).all())
    assert bool((wide.r2 < 0.999).all())


def test_regression_agrees_on_a_cifar_sized_cnn7_in_float32() -> None:
    torch.manual_seed(0)
    model = Model(Cnn7(width=4), (3, 32, 32))
    x = model.to_input(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    design = make_design(
        Draws(0), model.inputs, default_count(model.inputs), 0.01 * float(x.norm()), model.device
    )
    exact, found = by_autograd(model, x).matrix, by_regression(model, x, design).matrix
    assert float((found - exact).norm() / exact.norm()) < 1e-3


def test_too_few_perturbations_are_refused() -> None:
    with pytest.raises(UsageError, match="too few"):
        make_design(Draws(0), 20, 20, 1.0, torch.device("cpu"))


def test_differences_are_close_and_worse_than_autograd() -> None:
    model = cnn()
    exact = oracle_jacobian(small_cnn(), X)
    found = by_difference(model, X)
    error = relative(found.matrix, exact)
    assert error < 1e-3
    assert error > 100 * relative(by_autograd(model, X).matrix, exact)


@pytest.mark.parametrize("method", ["autograd", "regression", "difference"])
def test_the_jacobian_analyzer_stores_matrices_and_their_error(method: str) -> None:
    analyzer = plugins.load("analyzer", "jacobian")
    model = cnn()
    arrays = analyzer.compute(model, batch_of(X).padded(8), build_options(analyzer, {"method": method}))
    assert arrays["matrix"].shape == (8, 4, 128)
    if method == "autograd":
        assert "error" not in arrays
    else:
        assert float(arrays["error"].max()) < 1e-3
    assert ("bias" in arrays) == ("r2" in arrays) == (method == "regression")
