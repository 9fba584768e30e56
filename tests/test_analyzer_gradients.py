"""`gradients`: softmax of linear networks in closed form, identities, inequalities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import mlp_model
from nets import linear_model
from test_analyzer_gain import data_of
from torch import nn

import specdiag
from specdiag.analyzers import _gradients
from specdiag.analyzers._activity import active_shares, weight_variances
from specdiag.jacobian.rows import by_autograd
from specdiag.model import Model


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def linear_case(seed: int = 0, count: int = 10) -> tuple[Any, Any, Any, Any]:
    generator = np.random.default_rng(seed)
    weight, bias = generator.standard_normal((4, 6)), generator.standard_normal(4)
    x = generator.standard_normal((count, 6)).astype(np.float32)
    return weight, bias, x, generator.integers(0, 4, count)


def test_norms_of_a_linear_softmax() -> None:
    weight, bias, x, y = linear_case()
    found = specdiag.analyze(linear_model(weight, bias), data_of(x, y), "gradients", eps=0.1)
    p = softmax(x.astype(float) @ weight.T + bias)
    gradient = (p - np.eye(4)[y]) @ weight
    for place, q in enumerate((1, 2, np.inf)):
        np.testing.assert_allclose(
            found.loss_gradient_norm[:, place], np.linalg.norm(gradient, ord=q, axis=1), rtol=1e-12
        )
        np.testing.assert_allclose(
            found.logit_gradient_norm[0, :, place], np.linalg.norm(weight, ord=q, axis=1), rtol=1e-12
        )
    np.testing.assert_allclose(found.loss, -np.log(p[np.arange(10), y]), rtol=1e-12)
    np.testing.assert_allclose(found.predicted_damage, 0.1 * np.linalg.norm(gradient, axis=1), rtol=1e-12)
    pairs = weight[:, None] - weight[None]
    np.testing.assert_allclose(found.cross_lipschitz, (pairs**2).sum() / 16, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_identities_of_loss_and_logit_gradients(seed: int) -> None:
    """grad L = sum_k q_k (grad f_k - grad f_c), and its square is eq. 18's double sum; against autograd of the loss."""
    model = mlp_model(seed=seed)
    x = torch.from_numpy(np.random.default_rng(seed).random((8, 12)))
    y = torch.arange(8) % 5
    jacobian = by_autograd(model, x)
    gradient = _gradients.loss_gradient(jacobian.outputs, jacobian.matrix, y)
    leaf = x.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(model.forward(leaf), y, reduction="sum")
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    q = torch.softmax(jacobian.outputs, 1)
    difference = jacobian.matrix - jacobian.matrix[torch.arange(8), y][:, None]
    torch.testing.assert_close(gradient, (q[:, :, None] * difference).sum(1), rtol=1e-12, atol=1e-14)
    products = difference @ difference.mT
    eq18 = (q[:, :, None] * q[:, None, :] * products).sum((1, 2))
    torch.testing.assert_close(gradient.square().sum(1), eq18, rtol=1e-12, atol=1e-14)


def test_confident_samples_keep_the_digits_of_their_gradient() -> None:
    """With a lead of 40 plain softmax minus one-hot is all rounding; the label's entry is formed from the others."""
    logits = torch.tensor([[40.0, 0.0, -3.0]], dtype=torch.float64)
    weights = _gradients.label_weights(logits)[0, 0].numpy()
    rest = np.exp([-40.0, -43.0]) / (1 + np.exp(-40.0) + np.exp(-43.0))
    np.testing.assert_allclose(weights, [-rest.sum(), *rest], rtol=1e-13)


def test_lower_bound_of_a_linear_network_is_its_distance_to_the_boundary() -> None:
    weight, bias, x, y = linear_case(1)
    found = specdiag.analyze(linear_model(weight, bias), data_of(x, y), "gradients", eps=0.1)
    logits = x.astype(float) @ weight.T + bias
    for n in range(len(x)):
        c = logits[n].argmax()
        distances = [
            (logits[n, c] - logits[n, k]) / np.linalg.norm(weight[c] - weight[k]) for k in range(4) if k != c
        ]
        assert found.lower_bound.values[n] == pytest.approx(min(distances), rel=1e-12)
    assert found.lower_bound_exact.all(), "a linear network is one cell"
    inside = specdiag.analyze(
        linear_model(weight, bias), data_of(x, y), "gradients", attack="deepfool", initialisation=False
    )
    changed = inside.changed.values.astype(bool)
    assert (inside.perturbation_norm.values[changed] >= inside.lower_bound.values[changed] * (1 - 1e-9)).all()


def test_an_exact_lower_bound_is_never_undercut() -> None:
    """Whatever an attack reaches: where the bound is proved, no shorter perturbation changes the answer."""
    model = mlp_model((6, 3, 3), seed=3)
    x = 3 * np.random.default_rng(3).standard_normal((150, 6))
    y = model.logits(torch.from_numpy(x.astype(np.float32)).double()).argmax(1).numpy()
    for attack in ("deepfool", "pgd-l2"):
        extra: dict[str, Any] = {"eps": 1.0} if attack == "pgd-l2" else {}
        found = specdiag.analyze(model, data_of(x, y), "gradients", attack=attack, **extra)
        exact = found.lower_bound_exact.values & found.changed.values.astype(bool)
        assert exact.sum() >= 3
        assert (found.perturbation_norm.values[exact] >= found.lower_bound.values[exact] * (1 - 1e-9)).all()


@pytest.mark.parametrize("name", ["digits-standard", "digits-adversarial", "digits-random"])
def test_zero_one_damage_is_at_most_vulnerability(name: str, samples: Any) -> None:
    model = specdiag.load_model(samples / f"{name}.pt", device="cpu")
    data = specdiag.load_data("digits", samples=60)
    found = specdiag.analyze(model, data, "gradients", eps=1.0, steps=3, initialisation=False)
    assert float(found.zero_one_damage.mean()) <= float(found.changed.mean())
    right = found.loss.values < np.log(2)  # a probability above one half: the answer is the label
    perfect = found.isel(sample=np.flatnonzero(right))
    np.testing.assert_array_equal(perfect.zero_one_damage, perfect.changed)


def test_first_order_damage_is_right_for_small_eps() -> None:
    model = mlp_model(seed=1)
    x = np.random.default_rng(5).random((10, 12))
    for attack, dual in (("fgm-l2", 1), ("fgsm", 0)):
        found = specdiag.analyze(model, data_of(x, np.arange(10) % 5), "gradients", attack=attack, eps=1e-4)
        np.testing.assert_allclose(
            found.predicted_damage, 1e-4 * found.loss_gradient_norm[:, dual], rtol=1e-12
        )
        np.testing.assert_allclose(found.measured_damage, found.predicted_damage, rtol=2e-3)


def test_signal_to_noise_ratio_of_lemma_12_and_where_it_fails() -> None:
    weight, bias, x, y = linear_case(2)
    found = specdiag.analyze(linear_model(weight, bias), data_of(x, y), "gradients", eps=0.1, snr_eps=0.02)
    np.testing.assert_allclose(found.snr[:, 0], 1 / 0.02, rtol=1e-12)
    np.testing.assert_allclose(found.snr[:, 1], 1 / 0.02, rtol=1e-12)
    np.testing.assert_allclose(found.snr[:, 2], 1 / (0.02 * np.sqrt(6)), rtol=1e-12)


def test_kappa_is_the_smallest_gradient_over_labels() -> None:
    weight, bias, x, _ = linear_case(3, count=5)
    p = softmax(x.astype(float) @ weight.T + bias)
    expected = [min(np.linalg.norm((row - one) @ weight) for one in np.eye(4)) for row in p]
    found = _gradients.least_gradient(linear_model(weight, bias), [torch.from_numpy(x.astype(float))])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # more points can only lower it
    whole = specdiag.analyze(linear_model(weight, bias), data_of(x), "gradients", eps=0.3)
    assert (whole.kappa.values <= np.array(expected) * (1 + 1e-12)).all()


def test_active_shares_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    network[0].weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    model = Model(network, (2,), dtype=torch.float64)
    names, shares = active_shares(model, torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64))
    assert names == ["0"]
    np.testing.assert_allclose(shares, [[0.75], [0.25]])
    assert not any(module._forward_hooks for module in model.fast.modules())


def test_weights_at_he_initialisation_have_ratio_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 32, 3, groups=2), nn.Flatten(), nn.Linear(300, 200))
    for index in (0, 2):
        nn.init.kaiming_normal_(network[index].weight)  # type: ignore[arg-type]
    names, ratios = weight_variances(network)
    assert names == ["0", "2"]
    np.testing.assert_allclose(ratios, 1, atol=0.1)


def test_half_of_the_units_are_active_at_initialisation(samples: Any) -> None:
    model = specdiag.load_model(samples / "digits-standard.pt", device="cpu")
    found = specdiag.analyze(model, specdiag.load_data("digits", samples=20), "gradients", eps=0.5)
    assert list(found.activation.values) == ["conv1", "conv2", "conv3", "conv4"]
    assert abs(float(found.initial_active_share.mean()) - 0.5) < 0.1
    assert ((found.active_share >= 0) & (found.active_share <= 1)).all()


def test_data_without_labels_take_the_answers() -> None:
    weight, bias, x, _ = linear_case(4)
    found = specdiag.analyze(linear_model(weight, bias), data_of(x), "gradients", eps=0.1, label="predicted")
    logits = x.astype(float) @ weight.T + bias
    np.testing.assert_allclose(found.loss, -np.log(softmax(logits).max(1)), rtol=1e-12)
