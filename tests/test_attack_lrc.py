"""Correlated noise: its covariance, the worst of several draws, and training on it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, trained_model
from torch import nn
from training_common import method, run_of, step_of

from specdiag.attacks._ball import norms
from specdiag.attacks._correlated import data_root, exponential_root, root_of
from specdiag.attacks.lrc import Lrc
from specdiag.errors import DataError, UsageError
from specdiag.loading.datasets import load_data
from specdiag.model import Model, ModelInfo


def exponential(shape: tuple[int, int, int], length: float, factor: float) -> np.ndarray:
    """The matrix entry by entry."""
    channels, height, width = shape
    places = [(c, i, j) for c in range(channels) for i in range(height) for j in range(width)]
    rows = [
        [(1 if a == b else factor) * math.exp(-math.hypot(i - k, j - m) / length) for b, k, m in places]
        for a, i, j in places
    ]
    return np.array(rows)


def dense(root: object) -> np.ndarray:
    return root.times(torch.eye(root.size, dtype=torch.float64)).T.numpy()  # type: ignore[attr-defined]


def image_model(channels: int = 2, side: int = 4) -> Model:
    torch.manual_seed(0)
    shape = (channels, side, side)
    network = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 3))
    return Model(network, shape, dtype=torch.float64)


@pytest.mark.parametrize(("length", "factor"), [(2.5, 0.5), (0.7, 0.0), (20.0, 1.0)])
def test_root_of_the_exponential_covariance(length: float, factor: float) -> None:
    root = dense(exponential_root((3, 4, 5), length, factor))
    assert np.allclose(root @ root.T, exponential((3, 4, 5), length, factor), atol=1e-9)


def test_sampled_noise_has_the_covariance_asked_for() -> None:
    model = image_model()
    batch = batch_of(model, np.zeros((4000, 2, 4, 4)), np.zeros(4000))
    attack = Lrc(eps=1.0, decay_length=2.0, channel_factor=0.25, noise_size="gaussian")
    drawn = attack.noise(model, batch, 0).flatten(1).numpy() * math.sqrt(32)
    wanted = exponential((2, 4, 4), 2.0, 0.25)
    # the standard error of an entry is at most sqrt(2 / 4000) = 0.022
    assert np.abs(drawn.T @ drawn / 4000 - wanted).max() < 0.1
    assert abs(float((drawn**2).sum(1).mean()) - 32) < 1
    sphere = dataclasses.replace(attack, noise_size="sphere").noise(model, batch, 0)
    assert torch.allclose(norms(sphere), torch.ones(4000).double(), atol=1e-12)
    assert np.allclose(sphere.flatten(1).numpy(), drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_without_length_the_noise_is_white() -> None:
    root = dense(exponential_root((1, 5, 5), 1e-3, 0.5))
    assert np.allclose(root, np.eye(25), atol=1e-9)


def test_the_worst_draw_counts() -> None:
    model = trained_model()
    batch = digits_batch(model, 96)
    assert batch.y is not None
    margins = []
    for number in range(6):
        offset = Lrc(eps=1.5).noise(model, batch, number).to(batch.x) * 1.5
        z = model.logits(batch.x + offset).double()
        own = z.gather(1, batch.y[:, None])[:, 0]
        margins.append(own - z.scatter(1, batch.y[:, None], -torch.inf).amax(1))
    x = Lrc(eps=1.5, tries=6).perturb(model, batch)
    z = model.logits(x).double()
    found = z.gather(1, batch.y[:, None])[:, 0] - z.scatter(1, batch.y[:, None], -torch.inf).amax(1)
    assert torch.allclose(found, torch.stack(margins).amin(0), atol=1e-4)
    fooled = [
        int((model.logits(Lrc(eps=1.5, tries=k).perturb(model, batch)).argmax(1) != batch.y).sum())
        for k in (1, 4, 16)
    ]
    assert fooled[0] < fooled[1] < fooled[2]


@pytest.mark.parametrize("clip", [False, True])
def test_points_stay_in_ball_and_range(clip: bool) -> None:
    model = trained_model()
    batch = digits_batch(model, 24)
    for eps in (0.0, 0.05, 0.7):
        x = Lrc(eps=eps, clip=clip).perturb(model, batch)
        length = norms(x - batch.x)
        assert float(length.max()) <= eps * (1 + 1e-6) + 1e-6
        if clip:
            assert float(x.min()) >= 0
            assert float(x.max()) <= 1
        else:
            assert torch.allclose(length, torch.full_like(length, eps), rtol=1e-5)
    wild = norms(Lrc(eps=0.7, noise_size="gaussian", tries=1).perturb(model, batch) - batch.x)
    assert float(wild.max()) > 0.75
    assert float(wild.min()) < 0.65


def test_covariance_of_the_data_and_of_files(tmp_path: Path) -> None:
    data = load_data("digits", split="train", samples=None)
    flat = data.x.reshape(len(data.x), -1).astype(np.float64)
    wanted = np.cov(flat.T, bias=True)
    wanted = wanted / np.diag(wanted).mean()
    root = dense(data_root(torch.from_numpy(data.x)))
    # pixels that are always empty have no variance: the root is of deficient rank up to 1e-10
    assert np.allclose(root @ root.T, wanted, atol=1e-8)
    model = trained_model()
    model.info = ModelInfo(data="digits")
    batch = digits_batch(model, 8)
    from_data = Lrc(eps=1.0, covariance="data").perturb(model, batch)
    np.save(tmp_path / "c.npy", 3 * wanted)
    np.savez(tmp_path / "c.npz", covariance=wanted)
    with h5py.File(tmp_path / "c.h5", "w") as stored:
        stored["covariance/second_moments"] = wanted
    for name in ("c.npy", "c.npz", "c.h5"):
        x = Lrc(eps=1.0, covariance=str(tmp_path / name)).perturb(model, batch)
        assert torch.allclose(x, from_data, atol=1e-4), name


def test_deficient_and_wrong_matrices(tmp_path: Path) -> None:
    rank_one = torch.ones(6, 6).double()
    root = dense(root_of(rank_one))
    assert np.allclose(root @ root.T, 1, atol=1e-8)
    with pytest.raises(DataError, match="negative eigenvalue"):
        root_of(torch.diag(torch.tensor([1.0, -0.5, 1.0])))
    with pytest.raises(DataError, match="no positive diagonal"):
        root_of(torch.zeros(3, 3))
    model = linear_model()
    batch = batch_of(model, torch.rand(3, 6), torch.zeros(3))
    np.save(tmp_path / "small.npy", np.eye(5))
    (tmp_path / "broken.npz").write_bytes(b"no")
    for covariance, words in (
        (str(tmp_path / "small.npy"), "shape"),
        (str(tmp_path / "broken.npz"), "holds no covariance"),
    ):
        with pytest.raises(DataError, match=words):
            Lrc(eps=1.0, covariance=covariance).perturb(model, batch)
    for covariance, words in (("expo", "no such file"), ("data", "names no data set")):
        with pytest.raises(UsageError, match=words):
            Lrc(eps=1.0, covariance=covariance).perturb(model, batch)


def test_training_on_the_noise() -> None:
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), (2, 4, 4))
    augmented = method("lrc-augmented", eps=0.5, decay_length=2.0, channel_factor=0.25)
    augmented.prepare(run)
    step = step_of(run, 500)
    noise = (augmented.perturb(step) - step.x).flatten(1)
    assert torch.equal(augmented.perturb(step), augmented.perturb(step_of(run, 500)))
    assert float(noise.square().sum(1).mean()) == pytest.approx(0.25, rel=0.05)
    wanted = torch.from_numpy(exponential((2, 4, 4), 2.0, 0.25)) * 0.25 / 32
    assert float((noise.T @ noise / 500 - wanted).abs().max()) < 0.25 * 0.25 / 32
    later = dataclasses.replace(step, epoch=1)
    assert not torch.equal(augmented.perturb(later), augmented.perturb(step))
    data = method("lrc-augmented", eps=0.5, noise_covariance="data")
    data.prepare(run)
    assert run.samples is not None
    flat = run.samples.x.flatten(1)
    centred = flat - flat.mean(0)
    root = torch.from_numpy(dense(run.kept["lrc"]))
    moments = centred.T @ centred / len(flat)
    assert torch.allclose(root @ root.T, moments / moments.diagonal().mean(), atol=1e-8)
