"""Second moments of perturbations and of the data: closed forms, all pairs of pixels, and the grid of chunks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import batch_of, linear_model, trained_model
from torch import nn

import specdiag
from specdiag import figures
from specdiag.analyzers import _moments
from specdiag.analyzers.covariance import ANALYZER, Options
from specdiag.attacks._correlated import exponential_root
from specdiag.errors import UsageError
from specdiag.loading.datasets import Data
from specdiag.model import Model
from specdiag.schema import AttackSpec
from specdiag.store import provenance


def all_pairs(x: np.ndarray) -> np.ndarray:
    """Mean product by displacement, (C, C, 2 H - 1, 2 W - 1), pair by pair; x: (N, C, H, W)."""
    _, channels, height, width = x.shape
    total = np.zeros((channels, channels, 2 * height - 1, 2 * width - 1))
    pairs = np.zeros_like(total)
    for a, b in np.ndindex(channels, channels):
        for i, j, k, m in np.ndindex(height, width, height, width):
            place = (a, b, k - i + height - 1, m - j + width - 1)
            total[place] += (x[:, a, i, j] * x[:, b, k, m]).mean()
            pairs[place] += 1
    return total / pairs


def image_data(x: np.ndarray) -> Data:
    y = np.arange(len(x), dtype=np.int64) % 2
    data = specdiag.load_data("digits", samples=8)
    return dataclasses.replace(data, x=x.astype(np.float32), y=y, index=np.arange(len(x)))


def linear_images(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(3)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)), shape, dtype=dtype)


def test_perturbations_of_a_linear_network() -> None:
    """They are all +- eps w / ||w||: the matrix has rank one, the function follows from it."""
    shape = (2, 4, 5)
    model = linear_images(shape)
    x = np.random.default_rng(0).random((40, *shape))
    data = image_data(x)
    spec = {"attack": "fgm-l2", "eps": 0.5, "label": "predicted", "batch_size": 16}
    found = specdiag.analyze(model, data, "covariance", **spec)
    weight = model.network[1].weight.detach().double().numpy()
    w = weight[1] - weight[0]
    w = 0.5 * w / np.linalg.norm(w)
    assert np.allclose(found["second_moments"].values, np.outer(w, w), atol=1e-7)
    image = w.reshape(1, *shape)
    assert np.allclose(found["covariance_function"].values, all_pairs(image), atol=1e-7)
    centred = x.astype(np.float32).astype(np.float64)
    centred = centred - centred.mean(0)
    assert np.allclose(found["data_covariance_function"].values, all_pairs(centred), atol=1e-7)
    flat = centred.reshape(len(x), -1)
    assert np.allclose(found["data_covariance"].values, flat.T @ flat / len(x), atol=1e-7)
    answers = model.logits(model.to_input(x)).argmax(1).double().mean()
    share = float(2 * answers - 1) ** 2
    assert provenance(found)["metrics"]["mean_share"]["value"] == pytest.approx(share, abs=1e-6)


def test_ring_means_against_all_pairs() -> None:
    shape = (3, 4, 6)
    x = np.random.default_rng(1).standard_normal((5, *shape))
    state = _moments.empty(shape, full=False)
    _moments.add(state, "delta", torch.from_numpy(x), np.arange(5))
    radial = _moments.radial_of(state, "delta", centred=True)
    centred = x - x.mean(0)
    sums: dict[tuple[int, int], list[float]] = {}
    for a, i, j, b, k, m in np.ndindex(*shape, *shape):
        key = (int(a != b), round(math.hypot(i - k, j - m)))
        sums.setdefault(key, []).append(float((centred[:, a, i, j] * centred[:, b, k, m]).mean()))
    for (row, ring), values in sums.items():
        assert radial[row, ring] == pytest.approx(np.mean(values), abs=1e-12)


def test_one_channel_has_none_between() -> None:
    state = _moments.empty((1, 3, 3), full=True)
    _moments.add(state, "data", torch.ones(2, 1, 3, 3), np.arange(2))
    radial = _moments.radial_of(state, "data", centred=False)
    assert np.allclose(radial[0], 1)
    assert np.isnan(radial[1]).all()


def test_decay_length_of_known_functions() -> None:
    r = np.arange(40)
    # between whole pixels the function is taken as linear, which is a little above an exponential
    assert _moments.decay_length(np.exp(-r / 5)) == pytest.approx(5, rel=1e-9)
    assert _moments.decay_length(7 * np.exp(-r / 5.5)) == pytest.approx(5.5, rel=6e-3)
    assert _moments.decay_length(1 - r / 10) == pytest.approx(10 * (1 - math.exp(-1)))
    assert _moments.decay_length(np.array([1.0, 0.0, 0.9])) == pytest.approx(1 - math.exp(-1))
    assert _moments.decay_length(np.full(4, 2.0)) == math.inf
    assert math.isnan(_moments.decay_length(np.zeros(4)))


def test_noise_of_known_decay_length() -> None:
    """The estimate from samples lies within a few of its own errors of the exact function's decay length."""
    shape, length = (2, 16, 16), 2.5
    root = exponential_root(shape, length, 0.5)
    rng = np.random.default_rng(0)
    x = root.times(torch.from_numpy(rng.standard_normal((800, root.size)))).reshape(800, *shape)
    found = specdiag.analyze(linear_images(shape), image_data(x.numpy()), "covariance", eps=0.1)
    exact = _moments.empty(shape, full=False)
    rows = root.times(torch.eye(root.size, dtype=torch.float64)).T
    for column in rows.T.reshape(-1, *shape).split(64):
        _moments.add(exact, "data", column, np.zeros(len(column)))
    exact["data_count"][:] = 1 / 8
    truth = _moments.decay_length(_moments.radial_of(exact, "data", centred=False)[0])
    assert truth == pytest.approx(length, rel=0.1), "rings of rounded distances blur it a little"
    metric = provenance(found)["metrics"]["data_decay_length"]
    assert 0 < metric["error"] < 0.2
    assert abs(metric["value"] - truth) < 4 * metric["error"]


def test_jackknife_of_a_mean() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(800)
    left_out = np.array([np.delete(values, np.s_[k::8]).mean() for k in range(8)])
    assert float(_moments.jackknife(left_out)) == pytest.approx(1 / math.sqrt(800), rel=0.6)


def test_chunks_merge_to_the_same_sums_and_are_drawn() -> None:
    model = trained_model(torch.float64)
    data = specdiag.load_data("digits", samples=37)
    runs = {
        str(size): specdiag.analyze(model, data, "covariance", eps=0.05, batch_size=size) for size in (8, 64)
    }
    for name in ("covariance_function", "second_moments", "radial", "decay_length"):
        a, b = (run[name].values for run in runs.values())
        assert np.allclose(a, b, rtol=1e-6, atol=1e-12, equal_nan=True), name
    figure = figures.new_figure()
    with figures.style():
        ANALYZER.plot(runs, figure)
    assert len(figure.axes) == 5
    assert ANALYZER.table is not None
    assert ANALYZER.sentence is not None
    titles, rows = ANALYZER.table(runs["8"])
    assert rows[0][1:] == ["1.000", "1.000"]
    assert len(titles) == 3
    assert "pixels" in ANALYZER.sentence(runs["8"])


def test_samples_that_the_attack_leaves_alone_are_left_out() -> None:
    model = trained_model(torch.float64)
    data = specdiag.load_data("digits", samples=16)
    found = specdiag.analyze(model, data, "covariance", attack="pgd-linf", eps=0.0)
    assert found["used"].values[0] == 0
    assert [warning["id"] for warning in provenance(found)["warnings"]] == ["SD301"]
    assert ANALYZER.sentence is not None
    assert ANALYZER.sentence(found) == "No sample has a perturbation."


def test_features_are_refused_and_large_images_keep_no_matrix() -> None:
    features = linear_model()
    with pytest.raises(UsageError, match="needs images"):
        ANALYZER.compute.start(features, Options())
    model = linear_images((1, 33, 32))
    state: dict[str, Any] = ANALYZER.compute.start(model, Options())
    assert "delta_moments" not in state
    assert "delta_moments" in ANALYZER.compute.start(model, Options(form="full"))
    batch = batch_of(model, np.random.default_rng(0).random((4, 1, 33, 32)), [0, 1, 0, 1])
    options = Options(attack=AttackSpec("fgsm", {"eps": 0.1}), form="function")
    assert "second_moments" not in ANALYZER.compute.finish(
        ANALYZER.compute.update(state, model, batch, options), options
    )
