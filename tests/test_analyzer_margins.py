"""`margins`: linear networks in closed form, capacity terms by hand, both splits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import mlp_model
from nets import linear_model
from test_analyzer_gain import data_of
from torch import nn

import specdiag
from specdiag.analyzers import _capacity, _margins_numbers
from specdiag.model import Model
from specdiag.sampling import choose
from specdiag.store import provenance


def linear_case(seed: int = 0, count: int = 30) -> tuple[Any, Any, Any, Any]:
    generator = np.random.default_rng(seed)
    weight, bias = generator.standard_normal((4, 6)), 0.2 * generator.standard_normal(4)
    x = generator.standard_normal((count, 6)).astype(np.float32)
    y = (x.astype(float) @ weight.T + bias).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return weight, bias, x, y


def by_hand(weight: Any, bias: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Margins, losses and distances to the boundary of a linear classifier."""
    logits = x.astype(float) @ weight.T + bias
    rows = np.arange(len(y))
    others = logits.copy()
    others[rows, y] = -np.inf
    loss = np.log(np.exp(logits).sum(1)) - logits[rows, y]
    distances = []
    for row in logits:
        c = row.argmax()
        distances.append(
            min((row[c] - row[k]) / np.linalg.norm(weight[c] - weight[k]) for k in range(4) if k != c)
        )
    return logits[rows, y] - others.max(1), loss, np.array(distances)


def test_margins_losses_and_distances_of_a_linear_network() -> None:
    weight, bias, x, y = linear_case()
    found = specdiag.analyze(
        linear_model(weight, bias), data_of(x, y), "margins", gamma=0.7, near=0.3, eps=0.05
    )
    margin, loss, distance = by_hand(weight, bias, x, y)
    assert list(found.attack.values) == ["clean", "pgd-l2"]
    np.testing.assert_allclose(found.margin[:, 0], margin, rtol=1e-12)
    np.testing.assert_allclose(found.loss[:, 0], loss, rtol=1e-12)
    np.testing.assert_allclose(found.probability[:, 0], np.exp(-loss), rtol=1e-12)
    np.testing.assert_array_equal(found.wrong[:, 0], margin < 0)
    np.testing.assert_array_equal(found.margin_loss[:, 0], margin <= 0.7)
    np.testing.assert_array_equal(found.near_boundary[:, 0], np.abs(margin) < 0.3)
    np.testing.assert_allclose(
        found.ramp_loss[:, 0], np.minimum(1, np.maximum(0, 1 - margin / 0.7)), rtol=1e-12
    )
    np.testing.assert_allclose(found.instance_margin, distance, rtol=1e-7)
    assert found.monotone.all()
    np.testing.assert_allclose(found.loss_variation[:, 1], found.loss[:, 1] - found.loss[:, 0])
    assert (found.loss_variation[:, 1] > 0).all()


def test_attacked_margins_of_a_linear_network_fall_by_at_most_eps_times_the_slope() -> None:
    """With two classes the fall is exactly eps ||w_0 - w_1||, whatever the loss."""
    generator = np.random.default_rng(1)
    weight, x = generator.standard_normal((2, 5)), generator.standard_normal((20, 5))
    found = specdiag.analyze(
        linear_model(weight), data_of(x, np.arange(20) % 2), "margins", attack="fgm-l2", eps=0.25
    )
    fall = found.margin[:, 0] - found.margin[:, 1]
    np.testing.assert_allclose(fall, 0.25 * np.linalg.norm(weight[0] - weight[1]), rtol=1e-7)


def test_u_min_is_below_the_smallest_margin() -> None:
    weight, bias, x, y = linear_case(2)
    found = specdiag.analyze(linear_model(weight, bias), data_of(x, y), "margins", eps=0.05)
    margin, _, distance = by_hand(weight, bias, x, y)
    right = margin > 0
    closest = min(np.linalg.norm(weight[i] - weight[j]) for i in range(4) for j in range(i))
    assert float(found.smallest_margin[0]) == pytest.approx(margin[right].min(), rel=1e-12)
    assert float(found.u_min[0]) == pytest.approx(closest * distance[right].min(), rel=1e-7)
    assert float(found.u_min[0]) <= float(found.smallest_margin[0])


def two_layers() -> tuple[Model, float, float, float]:
    """diag(3, 1) then diag(2, 1/2): P = 6, S = 10/9 + 17/16, lip = P (3 + 6)."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    network[0].weight.data = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    network[2].weight.data = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    return Model(network, (2,), dtype=torch.float64), 6.0, 10 / 9 + 17 / 16, 54.0


def test_phi_of_a_two_layer_network_by_hand() -> None:
    model, product, ranks, lip = two_layers()
    known = _capacity.capacity([3, 2], [math.sqrt(10), math.sqrt(4.25)])
    assert math.exp(known.log_product) == pytest.approx(product)
    assert known.stable_ranks == pytest.approx(ranks)
    assert math.exp(known.log_lip) == pytest.approx(lip)
    kappa, eps, alpha, steps, penalty = 0.4, 0.1, 0.02, 3, 60.0
    phi = {
        "erm": product**2 * ranks,
        "fgm": (product * (1 + eps / kappa * lip)) ** 2 * ranks,
        "pgm": (
            product * (1 + alpha / kappa * lip * sum((2 * alpha * lip / kappa) ** t for t in range(steps)))
        )
        ** 2
        * ranks,
        "wrm": (product * (1 + lip / (penalty - lip))) ** 2 * ranks,
    }
    for name, value in phi.items():
        given: dict[str, Any] = {
            "kappa": kappa,
            "eps": eps,
            "alpha": alpha,
            "steps": steps,
            "penalty": penalty,
        }
        assert _capacity.log_phi(name, known, **given) == pytest.approx(math.log(value), rel=1e-13)  # type: ignore[arg-type]
        spectral = _capacity.log_phi(name, known, with_frobenius=False, **given)  # type: ignore[arg-type]
        assert spectral == pytest.approx(math.log(value / ranks), rel=1e-13)
    x = np.random.default_rng(0).random((16, 2)) + 0.1
    found = specdiag.analyze(
        model,
        data_of(x, np.zeros(16, int)),
        "margins",
        attack="fgm-l2,pgd-l2",
        eps=eps,
        alpha=alpha,
        steps=steps,
    )
    least = float(found.kappa.min())
    expected = {
        "erm": product**2 * ranks,
        "fgm": (product * (1 + eps / least * lip)) ** 2 * ranks,
        "pgm": (
            product * (1 + alpha / least * lip * sum((2 * alpha * lip / least) ** t for t in range(steps)))
        )
        ** 2
        * ranks,
    }
    assert list(found.theorem.values) == ["erm", "fgm", "pgm"]
    np.testing.assert_allclose(found.log_phi, np.log(list(expected.values())), rtol=1e-10)
    roots = np.sqrt(list(expected.values()))
    np.testing.assert_allclose(found.normalised_margin, found.margin.values / roots, rtol=1e-9)
    np.testing.assert_allclose(
        found.normalised_margin_spectral, found.margin.values / roots * math.sqrt(ranks), rtol=1e-9
    )


def test_phi_at_the_edges() -> None:
    known = _capacity.capacity([1.0], [1.0])
    # the ratio of the geometric sum is 1: three terms, where the printed quotient is 0 / 0
    pgm = _capacity.log_phi("pgm", known, kappa=1.0, alpha=0.5, steps=3)
    assert pgm == pytest.approx(2 * math.log(1 + 0.5 * 3))
    assert _capacity.log_phi("pgm", known, kappa=0.3, alpha=0.2, steps=1) == pytest.approx(
        _capacity.log_phi("fgm", known, kappa=0.3, eps=0.2)
    )
    assert math.isnan(_capacity.log_phi("wrm", known, penalty=1.0)), "lip >= lambda"
    assert math.isnan(_capacity.log_phi("fgm", known, kappa=0.0, eps=0.1))
    deep = _capacity.capacity([10.0] * 300, [20.0] * 300)
    assert math.isfinite(_capacity.log_phi("pgm", deep, kappa=1e-9, alpha=0.1, steps=15)), "works in logs"


def elu_weights(seed: int, sizes: tuple[int, ...] = (5, 7, 6, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
        for n, m in itertools.pairwise(sizes)
    ]


def elu_net(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for weight in weights[:-1]:
        x = nn.functional.elu(x @ weight.T)
    return x @ weights[-1].T


def capacity_of(weights: list[torch.Tensor]) -> _capacity.Capacity:
    sigma = [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights]
    return _capacity.capacity(sigma, [float(torch.linalg.matrix_norm(weight)) for weight in weights])


@pytest.mark.parametrize("seed", range(4))
def test_moving_the_weights_moves_the_outputs_by_at_most_lemma_2(seed: int) -> None:
    """||f_{w+u}(x) - f_w(x)|| <= e ||x|| P sum ||U_i|| / ||W_i|| for ||U_i|| <= ||W_i|| / d."""
    weights = elu_weights(seed)
    product = math.exp(capacity_of(weights).log_product)
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    for share in (1e-3, 0.3, 1.0):
        moved, ratios = [], 0.0
        for weight in weights:
            u = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            u *= share / len(weights) * torch.linalg.matrix_norm(weight, 2) / torch.linalg.matrix_norm(u, 2)
            moved.append(weight + u)
            ratios += share / len(weights)
        change = torch.linalg.vector_norm(elu_net(moved, x) - elu_net(weights, x), dim=1)
        bound = math.e * torch.linalg.vector_norm(x, dim=1) * product * ratios
        assert (change <= bound).all()
        assert (change > 1e-3 * bound).any(), "the inequality says something"


def test_normalised_gradients_differ_by_at_most_lemma_4() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(500, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    size = [torch.linalg.vector_norm(z, dim=1) for z in (one, other)]
    eps, kappa = 0.7, torch.maximum(*size)
    left = torch.linalg.vector_norm(eps * one / size[0][:, None] - eps * other / size[1][:, None], dim=1)
    right = 2 * eps / kappa * torch.linalg.vector_norm(one - other, dim=1)
    assert (left <= right * (1 + 1e-12)).all()
    assert (left > 0.3 * right).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_gradient_moves_by_at_most_lip_as_lemma_7_says(seed: int) -> None:
    """For ELU networks and a loss that is 1-Lipschitz and 1-smooth: cross-entropy over sqrt(2)."""
    weights = elu_weights(seed)
    lip = math.exp(capacity_of(weights).log_lip)
    generator = torch.Generator().manual_seed(seed + 7)
    start = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 3

    def gradient(x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(elu_net(weights, leaf), labels, reduction="sum") / 2**0.5
        return torch.autograd.grad(loss, leaf)[0]

    for length in (1e-3, 0.1, 1.0, 5.0):
        step = length * torch.randn(60, 5, generator=generator, dtype=torch.float64)
        change = torch.linalg.vector_norm(gradient(start + step) - gradient(start), dim=1)
        assert (change <= lip * torch.linalg.vector_norm(step, dim=1)).all()


def test_scaling_a_layer_leaves_the_erm_margin_over_its_product_alone() -> None:
    """M grows by c and so does sqrt(Phi): the normalised margin cannot be bought by larger weights."""
    model, *_ = two_layers()
    x = np.random.default_rng(3).random((8, 2))
    before = specdiag.analyze(model, data_of(x, np.zeros(8, int)), "margins", eps=0.1)
    grown, *_ = two_layers()
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    for index in (0, 2):
        network[index].weight.data = 7 * grown.network.get_submodule(str(index)).weight.detach().clone()  # type: ignore[operator]
    after = specdiag.analyze(
        Model(network, (2,), dtype=torch.float64), data_of(x, np.zeros(8, int)), "margins", eps=0.1
    )
    np.testing.assert_allclose(after.margin[:, 0], 49 * before.margin[:, 0], rtol=1e-12)
    np.testing.assert_allclose(after.normalised_margin[:, 0], before.normalised_margin[:, 0], rtol=1e-9)


def test_instance_margins_end_at_the_boundary() -> None:
    model = mlp_model((6, 12, 3), seed=2)
    x = np.random.default_rng(2).standard_normal((40, 6)) * 2
    found = specdiag.analyze(
        model, data_of(x, np.zeros(40, int)), "margins", attack="deepfool", label="predicted"
    )
    reach, length = found.instance_margin.values, found.perturbation_norm.values[:, 1]
    known = np.isfinite(reach)
    assert known.sum() > 20
    assert (reach[known] <= length[known] * (1 + 1e-9)).all(), "closed by bisection from beyond"
    assert (reach[known] >= length[known] / 1.2).all(), "and not at the start"


def test_skewness_and_mode_of_known_samples() -> None:
    generator = np.random.default_rng(0)
    assert _margins_numbers.skewness(generator.exponential(size=200_000)) == pytest.approx(2, abs=0.1)
    assert _margins_numbers.skewness(generator.standard_normal(200_000)) == pytest.approx(0, abs=0.02)
    gamma = generator.gamma(5.0, size=100_000)
    assert _margins_numbers.mode(gamma) == pytest.approx(4.0, abs=0.2)
    assert _margins_numbers.mode(np.concatenate([gamma + 50, np.full(3, 0.0)])) == pytest.approx(54, abs=0.3)
    assert math.isnan(_margins_numbers.mode(np.ones(5)))


@pytest.fixture(scope="module")
def both(samples: Any) -> Any:
    model = specdiag.load_model(samples / "digits-standard.pt", device="cpu")
    data = specdiag.load_data("digits", samples=24, split="both")
    return model, data, specdiag.analyze(model, data, "margins", eps=0.5)


def test_both_splits_are_told_apart(both: Any) -> None:
    _, _, found = both
    assert found.sizes["sample"] == 48
    assert list(found.split.values) == ["train"] * 24 + ["test"] * 24
    np.testing.assert_array_equal(found["index"][:24], choose(1400, 24, 0, "train"))
    np.testing.assert_array_equal(found["index"][24:], choose(397, 24, 0, "test"))
    assert len(np.unique(found.sample)) == 48


def test_the_test_half_is_what_the_test_split_alone_gives(both: Any) -> None:
    model, _, found = both
    alone = specdiag.analyze(model, specdiag.load_data("digits", samples=24), "margins", eps=0.5)
    half = found.isel(sample=slice(24, None))
    np.testing.assert_array_equal(alone.sample, half["index"])
    for name in ("margin", "loss", "instance_margin"):
        np.testing.assert_allclose(alone[name], half[name], rtol=2e-3, atol=2e-3)
    assert "loss_gap" not in provenance(alone)["metrics"]


def test_gaps_are_differences_of_the_splits(both: Any) -> None:
    _, _, found = both
    metrics = provenance(found)["metrics"]
    train, test = found.isel(sample=slice(24)), found.isel(sample=slice(24, None))
    for metric, array in (("loss_gap", "loss"), ("error_gap", "wrong"), ("margin_loss_gap", "margin_loss")):
        expected = test[array].astype(float).mean("sample") - train[array].astype(float).mean("sample")
        np.testing.assert_allclose(metrics[metric]["value"], expected)
    assert metrics["loss_gap"]["labels"] == ["clean", "pgd-l2"]
    assert metrics["margin_mean"]["n"] == [48, 48]


def test_both_splits_go_through_a_file(samples: Any, tmp_path: Any) -> None:
    from command import run

    folder = tmp_path / "out"
    done = run(
        "margins", str(samples / "digits-standard.pt"), "--split", "both", "-n", "8", "--out", str(folder)
    )
    assert done.exit_code == 0, done.output
    stored = specdiag.store.read_group(folder / "digits-standard.h5", "margins")
    assert [str(entry) for entry in stored.split.values] == ["train"] * 8 + ["test"] * 8
    assert stored["index"].dims == ("sample",)
    assert "train clean" in done.stdout


def test_what_the_theorems_do_not_cover_is_said(both: Any) -> None:
    _, _, found = both
    ids = [entry["id"] for entry in provenance(found)["warnings"]]
    assert "SD325" in ids, "BatchNorm"
    model, *_ = two_layers()
    inside = specdiag.analyze(
        model,
        data_of(np.random.default_rng(0).random((8, 2)), np.zeros(8, int)),
        "margins",
        attack="wrm",
        penalty=0.1,
    )
    ids = [entry["id"] for entry in provenance(inside)["warnings"]]
    assert "SD325" not in ids
    assert "SD326" in ids, "lip >= lambda"
    assert list(inside.theorem.values) == ["erm"]


def test_a_missing_u_min_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from specdiag.analyzers import _operators

    def said(network: nn.Module, channels: int = 2, **options: Any) -> str:
        model = Model(network, (channels, 24, 24), dtype=torch.float64)
        x = np.random.default_rng(0).random((4, channels, 24, 24))
        y = model.logits(model.to_input(x.astype(np.float32))).argmax(1).numpy()
        found = specdiag.analyze(model, data_of(x, y), "margins", eps=0.05, **options)
        texts = [entry["text"] for entry in provenance(found)["warnings"] if entry["id"] == "SD327"]
        assert ("u_min" in found) == (not texts)
        return " ".join(texts)

    def plain(inputs: int = 2, outputs: int = 2) -> nn.Sequential:
        torch.manual_seed(0)
        last = nn.Linear(9 * outputs, 3)
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), last
        )

    assert said(plain()) == ""
    assert "--instance" in said(plain(), instance=False)
    monkeypatch.setattr(_operators, "SECONDS", 0.0)
    assert "smallest singular value is not known of 0" in said(plain(4, 6), 4)

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved: torch.Tensor = self.body(x + torch.relu(x))
            return moved

    assert "chains" in said(Branch())
