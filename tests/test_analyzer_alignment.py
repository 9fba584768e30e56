"""Alignment against closed forms, chance, and what trained networks must show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, mlp_model, resnet20, trained_model
from attacks_common import cifar_batch as images

from specdiag import figures
from specdiag.analyzers import alignment
from specdiag.analyzers._attacked import expected_cosine
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.runner import as_numpy, to_dataset
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec


def measured(model: Model, batch: Batch, **options: Any) -> Any:
    """The dataset as the runner would assemble it."""
    spec = options.pop("attack", AttackSpec("pgd-l2", {"eps": 0.3}))
    arrays = alignment.compute(model, batch, alignment.Options(attack=spec, **options))
    found = {name: as_numpy(value) for name, value in arrays.items()}
    coords = {name: found.pop(name) for name in list(found) if name in alignment.ANALYZER.coordinates}
    return to_dataset(alignment.ANALYZER, found, coords, batch.index)


def test_one_step_on_a_linear_classifier_is_closed_form() -> None:
    """|cos| with v_r is sigma_r |<u_r, w>| / ||sum_r sigma_r <u_r, w> v_r||, w the logit direction."""
    model = linear_model(classes=3, inputs=8)
    x = torch.rand(5, 8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    spec = AttackSpec("fgm-l2", {"eps": 0.2})
    data = measured(model, batch_of(model, x, y), attack=spec, random_network=False)
    u, s, _ = np.linalg.svd(model.head_weight().numpy(), full_matrices=False)
    w = (torch.softmax(model.logits(x), 1) - torch.nn.functional.one_hot(y, 3)).numpy()
    parts = s * (w @ u)
    expected = np.abs(parts) / np.linalg.norm(parts, axis=1, keepdims=True)
    assert np.allclose(data.cosine, expected, atol=1e-12)
    assert np.allclose(data.subspace_energy[:, -1], 1, atol=1e-12)
    assert np.allclose(data.subspace_energy, (expected**2).cumsum(1), atol=1e-12)
    assert np.allclose(data.singular_values, s, atol=1e-12)
    assert np.allclose(data.perturbation_norm, 0.2, atol=1e-14)
    assert np.allclose(data.dominant_cosine, expected[:, 0], atol=1e-12)


def test_the_dominant_vector_aligns_with_itself_alone() -> None:
    model = mlp_model((12, 24, 5))
    x = torch.rand(8, 12, dtype=torch.float64)
    data = measured(model, batch_of(model, x, torch.zeros(8)), attack=AttackSpec("power", {"eps": 0.1}))
    assert np.allclose(data.cosine[:, 0], 1, atol=1e-10)
    assert np.allclose(data.cosine[:, 1:], 0, atol=1e-7)


@pytest.mark.parametrize("inputs", [2, 3, 64, 3072])
def test_chance_by_formula(inputs: int) -> None:
    known = {2: 2 / math.pi, 3: 0.5}
    expected = known.get(inputs, math.sqrt(2 / (math.pi * inputs)))
    assert expected_cosine(inputs) == pytest.approx(expected, rel=1e-12 if inputs in known else 1 / inputs)


def test_random_directions_align_as_chance_says() -> None:
    model = linear_model(classes=4, inputs=20)
    batch = batch_of(model, torch.rand(2000, 20), torch.zeros(2000))
    data = measured(model, batch, random_network=False)
    chance = float(data.random_expectation[0])
    error = data.random_cosine.std().item() / math.sqrt(2000)
    assert np.abs(data.random_cosine.mean("sample") - chance).max() < 4 * error
    assert float((data.random_cosine**2).sum("rank").mean()) == pytest.approx(4 / 20, rel=0.1)


def test_a_trained_network_aligns_and_the_random_one_does_not() -> None:
    model = trained_model()
    data = measured(model, digits_batch(model, 128), eps_sweep=(0.05, 1.5), steps_sweep=5)
    mean = data.cosine.mean("sample").values
    chance = float(data.random_expectation[0])
    assert mean[0] > 4 * chance
    assert mean[-1] < chance
    assert alignment.summarise(data)["rank_trend"][0] < -0.9
    strange = data.random_network_cosine.mean("sample").values
    assert np.abs(strange - chance).max() < 0.6 * chance
    assert data.random_self_cosine.mean("sample").values[0] > 1.5 * chance
    swept = data.eps_cosine.mean("sample").values
    assert swept[0] > swept[1] > chance
    assert data.step_cosine.shape == (128, 5)
    assert data.step_logit_cosine.shape == (128, 5, 10)
    assert float(data.fooled.mean()) > 0.1
    assert alignment.sentence(data).startswith("Perturbations have |cos|")
    titles, rows = alignment.table(data)
    assert len(titles) == 6
    assert len(rows) == 10
    figure = figures.new_figure()
    alignment.plot({"one": data, "two": data}, figure)
    assert len(figure.axes) == 3


def test_steps_near_the_power_method_for_sum_of_squares() -> None:
    """On a linear network with alpha infinite the gradients turn into the dominant vector, step by step."""
    model = linear_model(classes=3, inputs=8)
    batch = batch_of(model, torch.rand(6, 8), torch.zeros(6))
    spec = AttackSpec("pgd-l2", {"eps": 0.1, "loss": "sum-of-squares", "alpha": math.inf})
    data = measured(model, batch, attack=spec, steps_sweep=60, random_network=False)
    assert np.allclose(data.step_gradient_cosine[:, -1], 1, atol=1e-6)
    assert np.allclose(data.step_logit_cosine[:, -1, 0], 1, atol=1e-6)
    assert np.allclose(data.step_cosine, data.step_gradient_cosine, atol=1e-9)
    assert float(data.step_gradient_cosine[:, 0].mean()) < 0.99


def test_steps_need_an_attack_that_takes_some() -> None:
    model = linear_model()
    batch = batch_of(model, torch.rand(3, 6), torch.zeros(3))
    for name in ("fgm-l2", "random-l2", "power"):
        with pytest.raises(UsageError, match="takes no steps"):
            measured(model, batch, attack=AttackSpec(name, {"eps": 0.1}), steps_sweep=3)


def test_large_jacobians_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dominant vectors from products are those of the matrix."""
    from specdiag.attacks import _dominant

    model = trained_model(torch.float64)
    batch = digits_batch(model, 8)
    whole = measured(model, batch, random_network=False)
    assert measured(model, batch, random_network=False, top=3).cosine.shape == (8, 3)
    monkeypatch.setattr(_dominant, "LARGE", 1)
    monkeypatch.setattr(_dominant, "by_autograd", None)
    few = measured(model, batch, random_network=False, top=3)
    assert np.allclose(few.singular_values, whole.singular_values[:, :3], rtol=1e-8)
    assert np.allclose(few.cosine, whole.cosine[:, :3], atol=1e-5)


class _Half(torch.nn.Module):
    """A ReLU that is off where the first input is negative: no gradient there."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(x[:, :1]) * x)


def test_samples_without_a_gradient_are_named_and_left_out() -> None:
    torch.manual_seed(0)
    model = Model(_Half(), (4,), dtype=torch.float64)
    x = torch.rand(6, 4, dtype=torch.float64) + 0.2
    x[[1, 4], 0] = -1.0
    data = measured(model, batch_of(model, x, torch.zeros(6)), attack=AttackSpec("fgm-l2", {"eps": 0.1}))
    assert np.isnan(data.cosine).any("rank").values.tolist() == [False, True, False, False, True, False]
    assert data.usable.values.tolist() == [True, False, True, True, False, True]
    warnings = {entry["id"]: entry["text"] for entry in alignment.checks(data)}
    assert "2 of 6 samples (sample 1, 4)" in warnings["SD301"]
    assert np.isfinite(alignment.summarise(data)["rank_trend"][0])


def test_warnings_on_probabilities_and_constant_sums() -> None:
    model = trained_model()
    network = torch.nn.Sequential(model.network, torch.nn.Softmax(1))
    soft = Model(network, (1, 8, 8))
    found = alignment.checks(measured(soft, digits_batch(soft, 16), random_network=False))
    assert "SD306" in {entry["id"] for entry in found}
    centred = torch.nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        centred.weight.copy_(torch.eye(10) - 0.1)
    constant = Model(torch.nn.Sequential(model.network, centred), (1, 8, 8))
    data = measured(constant, digits_batch(constant, 16), random_network=False)
    assert "SD307" in {entry["id"] for entry in alignment.checks(data)}
    assert float(data.singular_values[:, -1].max()) < 1e-3 * float(data.singular_values[:, 0].min())
    plain = measured(model, digits_batch(model, 16), random_network=False, clip=True)
    assert not alignment.checks(plain)


def test_unclipped_perturbations_say_that_they_leave_the_range() -> None:
    model = trained_model()
    data = measured(model, digits_batch(model, 16), random_network=False)
    assert "SD308" in {entry["id"] for entry in alignment.checks(data)}


def test_the_resnet_aligns(assets) -> None:
    model = resnet20(assets)
    spec = AttackSpec("pgd-l2", {"eps": 0.1})
    data = measured(model, images(assets, model, 16), attack=spec, random_network=False)
    chance = float(data.random_expectation[0])
    assert chance == pytest.approx(math.sqrt(2 / (math.pi * 3072)), rel=1e-3)
    assert float(data.cosine.mean("sample")[0]) > 20 * chance
    assert alignment.summarise(data)["rank_trend"][0] < -0.7
