"""The softmax along a line, where it is known in closed form, and the images beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, trained_model

import specdiag
from specdiag import figures
from specdiag.analyzers import examples, trajectory
from specdiag.schema import AttackSpec


def test_two_classes_of_a_linear_network() -> None:
    """The margin falls along the line by ||w|| eps per part; probabilities are its logistic function."""
    model = linear_model(classes=2, inputs=6)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model.logits(x).argmax(1)
    eps = 1.5
    options = trajectory.Options(attack=AttackSpec("fgm-l2", {"eps": eps}), points=301, reach=2.0)
    found = trajectory.compute(model, batch_of(model, x, y), options)
    weight = model.head_weight()
    slope = float((weight[0] - weight[1]).norm()) * eps
    z = model.logits(x)
    margin = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    parts = torch.linspace(0, 2, 301).double()
    expected = torch.sigmoid(margin[:, None] - slope * parts)
    assert torch.allclose(found["label_probability"], expected, atol=1e-12)
    assert torch.allclose(found["target_probability"], 1 - expected, atol=1e-12)
    assert torch.equal(found["target"], 1 - y)
    crossing = margin / slope
    inside = crossing <= 2
    assert inside.any()
    assert torch.allclose(found["crossing"][inside], crossing[inside], atol=2 / 300 + 1e-9)
    assert bool(torch.isinf(found["crossing"][~inside]).all())
    # the logistic function is steepest in its middle, where its slope is a quarter
    middle = inside & (crossing > 0.02)
    assert torch.allclose(found["max_slope"][middle], torch.tensor(slope / 4).double(), rtol=1e-3)
    assert torch.allclose(found["path_length"], expected[:, 0] - expected[:, -1], atol=1e-12)
    ratio = found["max_slope"] * 2 / found["path_length"]
    assert torch.allclose(found["sharpness"], ratio)


def test_an_even_change_has_sharpness_one_and_a_jump_has_that_of_the_grid() -> None:
    even = torch.stack([torch.linspace(1, 0, 11), torch.linspace(0, 1, 11)], 1)[None].double()
    jump = torch.stack([(torch.arange(11) < 5).double(), (torch.arange(11) >= 5).double()], 1)[None]
    still = torch.full((1, 11, 2), 0.5).double()
    found = trajectory._changes(torch.cat([even, jump, still]), 1.0, torch.ones(3, dtype=torch.bool))
    assert found["sharpness"][:2].tolist() == pytest.approx([1.0, 10.0])
    assert math.isnan(float(found["sharpness"][2]))


def test_ends_of_the_line_are_the_clean_and_the_adversarial_point() -> None:
    model = trained_model(torch.float64)
    batch = digits_batch(model, 24)
    attack = AttackSpec("pgd-linf", {"eps": 0.1})
    found = trajectory.compute(model, batch, trajectory.Options(attack=attack, points=5))
    from specdiag.options import build_attack

    moved = build_attack(attack).perturb(model, batch)
    for place, x in ((0, batch.x), (-1, moved)):
        wanted = torch.softmax(model.logits(x), 1)
        assert torch.allclose(found["probability"][:, place], wanted, atol=1e-10)
    assert batch.y is not None
    assert torch.equal(found["fooled"], model.logits(moved).argmax(1) != batch.y)


def test_samples_without_a_perturbation_have_no_sharpness() -> None:
    data = specdiag.load_data("digits", samples=9)
    found = specdiag.analyze(trained_model(), data, "trajectory", attack="pgd-l2", eps=0.0, clip=False)
    assert np.isnan(found["sharpness"].values).all()
    assert trajectory.sentence(found) == "No sample has a perturbation that changes the softmax."
    assert [warning["id"] for warning in trajectory.checks(found)] == ["SD301"]


def test_images_of_a_linear_network() -> None:
    """v_1 of two opposite rows is their direction, and so is the perturbation."""
    model = linear_model(classes=2, inputs=6, bias=False)
    with torch.no_grad():
        model.network.linear.weight[1] = -model.network.linear.weight[0]
    model = type(model)(model.network, (6,), dtype=torch.float64)
    batch = batch_of(model, torch.rand(10, 6), torch.arange(10) % 2)
    options = examples.Options(attack=AttackSpec("fgm-l2", {"eps": 0.25}), clip=False)
    found = examples.compute(model, batch, options)
    assert found["x"].shape == (10, 1, 1, 6)
    assert torch.allclose(found["dominant_cosine"], torch.ones(10).double())
    assert torch.allclose(found["perturbation"], 0.25 * found["dominant_vector"], atol=1e-10)


def test_images_are_drawn_in_rows() -> None:
    data = specdiag.load_data("digits", samples=6)
    found = specdiag.analyze(trained_model(), data, "examples", eps=0.1, columns=4)
    assert np.array_equal(found["x"].values, data.x.astype(np.float64))
    assert np.allclose(np.linalg.norm(found["dominant_vector"].values.reshape(6, -1), axis=1), 1, atol=1e-5)
    figure = figures.new_figure()
    with figures.style():
        examples.ANALYZER.plot({"one": found, "two": found}, figure)
    assert len(figure.axes) == 5 * 4
    image = examples._shown(np.array([[[-2.0, 0.0, 1.0]]]), signed=True)
    assert image.tolist() == [[0.0, 0.5, 0.75]]
    assert examples._shown(np.zeros((3, 2, 5)), signed=False).shape == (2, 5, 3)
