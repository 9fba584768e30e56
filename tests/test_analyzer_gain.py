"""`gain`: linear networks by hand, bounds that must hold, layers against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import linear_model, with_singular_values
from torch import nn

import specdiag
from specdiag.analyzers._lipschitz import bounds_of
from specdiag.analyzers._operators import norms_of
from specdiag.errors import ModelError
from specdiag.loading.datasets import Data, hash_arrays
from specdiag.model import Model, Normalisation


def data_of(x: Any, y: Any = None) -> Data:
    x = np.asarray(x, np.float32)
    return Data(x, y, np.arange(len(x)), "test", "made", len(x), hash_arrays(x, y), -np.inf, np.inf, None, ())


def elu_net(seed: int = 0, bias: bool = False) -> Model:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=bias), nn.ELU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return Model(nn.Sequential(*layers, nn.Linear(6, 3, bias=bias)), (2, 8, 8), dtype=torch.float64)


def dense(model: Model, path: str, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The matrix of one layer, without its bias."""
    module = model.fast.get_submodule(path)
    zero = torch.zeros((1, *size), dtype=torch.float64)
    identity = torch.eye(int(np.prod(size)), dtype=torch.float64).reshape(-1, *size)
    with torch.no_grad():
        columns = (module(identity) - module(zero)).flatten(1)
    matrix: np.ndarray[Any, Any] = columns.T.numpy()
    return matrix


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, float("inf")])
def test_gain_of_a_linear_network(order: float) -> None:
    generator = np.random.default_rng(0)
    weight, x = generator.standard_normal((3, 5)), generator.standard_normal((9, 5)).astype(np.float32)
    found = specdiag.analyze(linear_model(weight), data_of(x), "gain", order=order, of="input")
    exact = x.astype(np.float64)
    expected = np.linalg.norm(exact @ weight.T, ord=order, axis=1) / np.linalg.norm(exact, ord=order, axis=1)
    np.testing.assert_allclose(found.gain, expected, rtol=1e-12)
    assert "perturbation_gain" not in found


def test_perturbations_of_a_linear_network_lie_between_its_singular_values() -> None:
    values = np.array([3.0, 1.5, 0.25])
    weight = with_singular_values(values, 3, 3, seed=1)
    x = np.random.default_rng(2).standard_normal((12, 3))
    found = specdiag.analyze(
        linear_model(weight), data_of(x, np.arange(12) % 3), "gain", of="perturbation", eps=0.1, steps=3
    )
    gains = found.perturbation_gain.values
    assert gains.min() >= 0.25 - 1e-9
    assert gains.max() <= 3 + 1e-9
    np.testing.assert_allclose(found.operator_norm, [3.0], rtol=1e-12)
    np.testing.assert_allclose(found.sigma_std, [values.std()], rtol=1e-12)
    np.testing.assert_allclose(found.sigma_max, 3.0, rtol=1e-12)
    np.testing.assert_allclose(found.network_bound, [3.0], rtol=1e-7)
    np.testing.assert_allclose(found.layer_gain[:, :, 0], gains, rtol=1e-12)
    np.testing.assert_allclose(found.local_gain[:, :, 0], gains, rtol=1e-9)
    np.testing.assert_allclose(found.first_order_ratio, gains / 3, rtol=1e-12)
    assert not found.exceeds.any()


def test_an_orthogonal_network_gains_one() -> None:
    weight = np.linalg.qr(np.random.default_rng(3).standard_normal((6, 6)))[0]
    found = specdiag.analyze(
        linear_model(weight), data_of(np.random.default_rng(4).random((5, 6)), np.arange(5)), "gain", eps=0.3
    )
    for name in ("gain", "perturbation_gain", "local_gain", "worst_case_share"):
        np.testing.assert_allclose(found[name], 1.0, rtol=1e-10)
    np.testing.assert_allclose(found.sigma_std, 0.0, atol=1e-12)


def test_operator_norms_are_those_of_the_dense_matrices() -> None:
    model = elu_net()
    norms = norms_of(model)
    assert norms.names == ["0", "3", "7"]
    for number, use in enumerate(norms.uses):
        values = np.linalg.svd(dense(model, use.path, use.size), compute_uv=False)
        assert abs(norms.sigma_max[number] - values[0]) <= norms.error[number] + 1e-12
        np.testing.assert_allclose(norms.sigma_std[number], values.std(), rtol=1e-7)
        np.testing.assert_allclose(norms.sigma_min[number], values[-1], atol=1e-8 * values[0])
        np.testing.assert_allclose(norms.frobenius[number], np.sqrt((values**2).sum()), rtol=1e-12)


def test_large_layers_are_estimated_with_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from specdiag.analyzers import _operators

    def wide() -> Model:
        torch.manual_seed(0)
        return Model(nn.Conv2d(4, 6, 3, padding=1), (4, 24, 24), dtype=torch.float64)

    monkeypatch.setattr(_operators, "SECONDS", 60.0)
    exact = norms_of(wide())
    monkeypatch.setattr(_operators, "SECONDS", 0.0)
    found = norms_of(wide())
    values = np.linalg.svd(dense(wide(), "", (4, 24, 24)), compute_uv=False)
    for norms in (exact, found):
        assert abs(norms.sigma_max[0] - values[0]) <= norms.error[0] + 1e-12
        assert abs(norms.sigma_std[0] - values.std()) <= norms.sigma_std_error[0] + 1e-12
        np.testing.assert_allclose(norms.frobenius, np.sqrt((values**2).sum()), rtol=1e-12)
    assert np.isnan(found.sigma_min[0])


@pytest.mark.parametrize("seed", range(5))
def test_no_gain_is_above_the_bound_without_biases(seed: int) -> None:
    model = elu_net(seed)
    x = np.random.default_rng(seed).standard_normal((40, 2, 8, 8))
    found = specdiag.analyze(model, data_of(x, np.arange(40) % 3), "gain", eps=0.5)
    bound = float(found.network_bound[0])
    assert np.isfinite(bound)
    assert (found.gain <= bound).all(), "f(0) = 0"
    assert (found.perturbation_gain <= bound).all()
    assert (found.layer_gain <= found.lipschitz_bound * (1 + 1e-9)).all()
    assert (found.local_gain <= found.operator_norm + found.operator_norm_error + 1e-9).all()
    assert (found.sigma_max <= bound).all()


class Branch(nn.Module):
    """x + A x."""

    def __init__(self, matrix: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.inner.weight.data = torch.from_numpy(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = x + self.inner(x)
        return moved


def test_branches_add_where_a_product_would_be_wrong() -> None:
    """I + A can be longer than A: the bound of the sum is 1 + ||A||, never ||A||."""
    matrix = with_singular_values(np.array([0.4, 0.2, 0.1, 0.05]), 4, 4, seed=5)
    model = Model(Branch(matrix), (4,), dtype=torch.float64)
    bounds = bounds_of(model)
    assert bounds.branches
    assert bounds.total == pytest.approx(1.4, rel=1e-7)
    assert np.linalg.svd(np.eye(4) + matrix, compute_uv=False)[0] > 0.4


def test_overlapping_pools_normalisation_and_batchnorm_are_in_the_bound() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(3, 1, 1)
    )
    network[1].running_var.fill_(0.25)  # type: ignore[operator]
    normalisation = Normalisation("channel", (0.5,), (0.25,))
    model = Model(network, (1, 6, 6), normalisation=normalisation, dtype=torch.float64)
    bounds = bounds_of(model)
    sigma = np.linalg.svd(dense(model, "0", (1, 6, 6)), compute_uv=False)[0]
    assert bounds.batch_norm
    assert bounds.total == pytest.approx(3 * sigma / 0.25, rel=1e-6)


def test_no_bound_where_the_walk_fails() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3))
    model = Model(network, (4,), dtype=torch.float64)
    bounds = bounds_of(model)
    assert bounds.total is None
    assert bounds.failed == "gelu"
    found = specdiag.analyze(
        model, data_of(np.random.default_rng(0).random((4, 4)), np.arange(4) % 3), "gain", eps=0.1
    )
    assert np.isnan(found.network_bound).all()
    facts = specdiag.store.provenance(found)
    assert any(entry["id"] == "SD320" for entry in facts["warnings"])
    assert "lipschitz_bound" not in facts["metrics"]


def test_a_module_used_twice_is_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(torch.relu(self.inner(x)))
            return result

    torch.manual_seed(1)
    model = Model(Twice(), (4,), dtype=torch.float64)
    assert norms_of(model).names == ["inner", "inner#2"]
    sigma = np.linalg.svd(model.fast.get_submodule("inner").weight.numpy(), compute_uv=False)[0]  # type: ignore[operator]
    assert bounds_of(model).total == pytest.approx(sigma**2, rel=1e-6)


def test_layer_gains_are_those_of_the_layers_themselves(samples: Any) -> None:
    model = specdiag.load_model(samples / "digits-standard.pt", device="cpu", dtype="float64")
    data = specdiag.load_data("digits", samples=6)
    found = specdiag.analyze(model, data, "gain", attack="random-l2", eps=0.2)
    assert list(found.layer.values) == ["conv1", "conv2", "conv3", "conv4", "linear"]
    np.testing.assert_allclose(found.layer_gain[:, :, -1], found.perturbation_gain, rtol=1e-10)
    # the first layer's own gain is its gain so far, but for the normalisation before it
    scale = 1 / model.normalisation.std[0]
    np.testing.assert_allclose(found.layer_gain[:, :, 0], scale * found.local_gain[:, :, 0], rtol=1e-9)
    assert (found.worst_case_share <= 1 + 1e-9).all()


def test_a_network_without_linear_layers_is_told_so() -> None:
    model = Model(nn.Sequential(nn.Tanh()), (4,), dtype=torch.float64)
    data = data_of(np.random.default_rng(0).random((4, 4)), np.arange(4))
    with pytest.raises(ModelError, match="no linear layer"):
        specdiag.analyze(model, data, "gain", eps=0.1)
    found = specdiag.analyze(model, data, "gain", of="input")
    assert (found.gain < 1).all()
