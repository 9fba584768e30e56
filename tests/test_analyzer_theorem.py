"""Theorem 1 inside and outside the cell, and A.1's identity."""

from __future__ import annotations

import itertools
import math
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import (
    batch_of,
    cifar_batch,
    digits_batch,
    linear_model,
    mlp_model,
    resnet20,
    trained_model,
)
from command import run
from torch import nn

import specdiag
from specdiag import figures
from specdiag.analyzers import _cells, _regression, theorem
from specdiag.errors import ModelError, UsageError
from specdiag.model import Model, Normalisation
from specdiag.runner import as_numpy, to_dataset
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec

ORDER = {"l1": 1, "l2": 2, "linf": math.inf}


def measured(model: Model, batch: Batch, eps: float = 1.0, steps: int = 10, **options: Any) -> Any:
    spec = AttackSpec("pgd-l2", {"eps": eps, "steps": steps})
    arrays = theorem.compute(model, batch, theorem.Options(attack=spec, **options))
    found = {name: as_numpy(value) for name, value in arrays.items()}
    coords = {name: found.pop(name) for name in list(found) if name in theorem.ANALYZER.coordinates}
    return to_dataset(theorem.ANALYZER, found, coords, batch.index)


def test_on_a_linear_network_attack_and_power_method_are_one() -> None:
    """There is no wall, so eps is the one asked for and both places agree to rounding."""
    model = linear_model(classes=4, inputs=9)
    data = measured(model, batch_of(model, torch.rand(6, 9), torch.zeros(6)), eps=0.5, steps=60)
    assert np.isinf(data.cell_radius).all()
    assert (data.eps_inside == 0.5).all()
    assert float(data.difference.max()) < 1e-12
    assert float(data.sigma_gap.max()) < 1e-12
    assert (data.agrees == 1).all()
    sigma = float(torch.linalg.matrix_norm(model.head_weight(), 2))
    assert np.allclose(data.sigma_attack[:, :, -1], sigma, rtol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "digits"])
def test_inside_the_cell_they_agree_and_outside_they_need_not(kind: str) -> None:
    if kind == "mlp":
        model = mlp_model((12, 20, 20, 5))
        batch = batch_of(model, torch.rand(32, 12), torch.zeros(32))
    else:
        model = trained_model()
        batch = digits_batch(model, 48)
    data = measured(model, batch)
    tolerance = data.tolerance.values
    assert (tolerance[np.isfinite(tolerance)] >= 1e-9).all()
    assert float(data.agrees.mean()) == 1
    assert int(data.decided.sum()) >= 0.8 * len(batch)
    inside = data.sel(place="inside")
    assert np.nanmax(inside.update_gap / inside.tolerance) <= 1
    assert np.nanmax(inside.sigma_gap / inside.tolerance) <= 1
    assert np.nanmax(inside.difference) < 1e-6
    assert (inside.same_cell.where(data.decided.astype(bool), 1) == 1).all()
    outside = data.sel(place="outside")
    assert float(outside.difference.median()) > 1e3 * float(inside.difference.median())
    assert float(outside.same_cell.mean()) < 0.01
    assert np.nanmax(data.eps_inside / data.cell_radius) <= 0.9 + 1e-12
    assert bool((data.visited_radius.min("step") >= data.cell_radius * (1 - 1e-9)).all())
    assert theorem.summarise(data)["agreement"] == (1.0, 0.0)
    assert theorem.sentence(data).startswith("Inside the linear cells")
    figure = figures.new_figure()
    theorem.plot({"one": data}, figure)
    assert len(figure.axes) == 2
    assert len(theorem.table(data)[1]) == 10


def test_precision_of_the_model_does_not_matter() -> None:
    """Cells are far below float32's resolution, so everything runs in float64."""
    single, double = trained_model(), trained_model(torch.float64)
    a, b = (measured(m, digits_batch(m, 16)) for m in (single, double))
    assert np.allclose(a.cell_radius, b.cell_radius, rtol=1e-9)
    assert np.array_equal(a.agrees, b.agrees, equal_nan=True)


def test_points_on_a_wall_are_named() -> None:
    """Equal entries in a max-pool window: no ball is inside one cell."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.MaxPool1d(2), nn.Flatten(), nn.Linear(3, 2))
    model = Model(network, (1, 6), dtype=torch.float64)
    x = torch.rand(3, 1, 6, dtype=torch.float64)
    x[1, 0, 2] = x[1, 0, 3]
    data = measured(model, batch_of(model, x, torch.zeros(3)))
    assert data.on_wall.values.tolist() == [False, True, False]
    assert float(data.cell_radius[1]) == 0
    gap = (x[0, 0, 0::2] - x[0, 0, 1::2]).abs().min() / math.sqrt(2)
    assert float(data.cell_radius[0]) == pytest.approx(float(gap), rel=1e-12)
    texts = {entry["id"]: entry["text"] for entry in theorem.checks(data)}
    assert texts["SD314"].startswith("1 of 3 samples lie on a wall")
    assert np.isnan(data.agrees.values[1])


@pytest.mark.parametrize(
    ("network", "normalisation", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)), None, "'2' applies tanh"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
            Normalisation("per-image"),
            "normalisation of each image",
        ),
    ],
)
def test_smooth_networks_are_refused_with_what_remains(
    network: nn.Module, normalisation: Any, words: str
) -> None:
    model = Model(network, (1, 4, 4), normalisation=normalisation)
    with pytest.raises(ModelError, match=words) as error:
        measured(model, batch_of(model, torch.rand(2, 1, 4, 4), torch.zeros(2)))
    assert "linearity" in error.value.todo


def test_other_attacks_are_refused() -> None:
    model = linear_model()
    batch = batch_of(model, torch.rand(2, 6), torch.zeros(2))
    for spec in (
        AttackSpec("fgsm", {"eps": 0.1}),
        AttackSpec("pgd-l2", {"eps": 0.1, "loss": "margin"}),
        AttackSpec("pgd-l2", {"eps": 0.1, "target": 1}),
        AttackSpec("pgd-l2", {"eps": None}),
    ):
        with pytest.raises(UsageError) as error:
            theorem.compute(model, batch, theorem.Options(attack=spec))
        assert error.value.todo


@pytest.mark.parametrize(("g", "h"), list(itertools.product(("l1", "l2", "linf"), repeat=2)))
def test_robust_regression(g: Any, h: Any) -> None:
    """The corrected Delta attains g(r) + size h(w) and has the norm allowed; the printed sign attains the minimum."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 7, 5, generator=generator, dtype=torch.float64)
    y, w = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (7, 5))
    residual = y - (x @ w[:, :, None])[:, :, 0]
    delta = _regression.worst_case(residual, w, 0.7, g, h)

    def value(d: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(y - ((x + d) @ w[:, :, None])[:, :, 0], ORDER[g], dim=1)

    bound = value(0 * delta) + 0.7 * torch.linalg.vector_norm(w, ORDER[h], dim=1)
    assert torch.allclose(value(delta), bound, rtol=1e-13)
    assert bool((value(-delta) < value(delta)).all())
    for row in range(4):
        probe = torch.randn(500, 5, generator=generator, dtype=torch.float64)
        ratio = torch.linalg.vector_norm(probe @ delta[row].T, ORDER[g], dim=1)
        ratio = ratio / torch.linalg.vector_norm(probe, ORDER[h], dim=1)
        assert float(ratio.max()) <= 0.7 * (1 + 1e-12), "in the ball"
        own = _norm_ratio(delta[row], w[row], g, h)
        assert own == pytest.approx(0.7, rel=1e-12), "on its edge"
        for _ in range(50):
            other = torch.randn(7, 5, generator=generator, dtype=torch.float64)
            # Frobenius bounds every induced norm here up to sqrt of the sizes: well inside the ball
            other = other * 0.7 / (other.norm() * math.sqrt(35))
            assert float(value(other.expand(4, 7, 5))[row]) <= float(bound[row])
    gap = _regression.identity_gap(x, y, w, 0.7)
    assert gap.shape == (4, 9)
    assert float(gap.max()) < 1e-13


def _norm_ratio(delta: torch.Tensor, w: torch.Tensor, g: str, h: str) -> float:
    return float(torch.linalg.vector_norm(delta @ w, ORDER[g]) / torch.linalg.vector_norm(w, ORDER[h]))


def test_the_radii_count_points_on_a_wall() -> None:
    """Radius zero has no place on a logarithmic axis: the curve starts at the share of those points."""
    model = trained_model()
    data = measured(model, digits_batch(model, 16), steps=2)
    data["cell_radius"][:4] = 0.0
    figure = figures.new_figure()
    theorem.plot({"one": data}, figure)
    ball = figure.axes[0].lines[0].get_ydata()
    assert ball[0] == pytest.approx(5 / 16)
    assert ball[-1] == 1


def test_the_cost_is_told_before_it_is_paid(samples: Any, tmp_path: Any) -> None:
    """Gradients, budget and rough seconds; the number of walls is that of the activations and max-pool entries."""
    done = run("theorem", samples / "digits-standard.pt", "--samples", 9, "--steps", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    model = specdiag.load_model(samples / "digits-standard.pt", device="cpu")
    with torch.no_grad():
        walls = _cells.wall_distances(model)(torch.rand(1, 1, 8, 8)).shape[1]
    line = next(line for line in done.stderr.splitlines() if "walls of the cell" in line)
    assert f"{walls:,} walls of the cell for each of 9 samples" in line
    wide = Model(nn.Sequential(nn.Flatten(), nn.Linear(144, 300), nn.ReLU(), nn.Linear(300, 3)), (1, 12, 12))
    told = theorem.forecast(wide, theorem.Options(cell_budget=7), 20, 8)
    assert "300 walls of the cell for each of 20 samples" in told
    assert "at most 7 gradients (--cell-budget)" in told
    assert re.search(r"about \d+ s if the usual 32 are enough, at most \d+ s\.$", told)


def test_the_forecast_is_of_the_right_order() -> None:
    """Measured on one gradient: ten times the gradients take about ten times as long."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(144, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 3)]
    model = Model(nn.Sequential(*layers), (1, 12, 12), dtype=torch.float64)
    walls, gradients, products, each = _cells.cost(model, 8, 100)
    assert (walls, gradients) == (1600, 100)
    assert 0 < each < products, "64 products beside one gradient"
    batch = batch_of(model, torch.rand(8, 1, 12, 12), torch.zeros(8))
    start = time.perf_counter()
    _cells.cell_radius(model, batch, 100)
    taken = time.perf_counter() - start
    assert (products + each) / 30 < taken < 30 * (products + 100 * each)


@pytest.mark.slow
def test_the_resnet_agrees_inside_its_cells(assets) -> None:
    model = resnet20(assets)
    data = measured(model, cifar_batch(assets, model, 4), eps=0.1, steps=5)
    assert (data.agrees == 1).all()
    assert bool(data.cell_exact.all())
    assert float(data.cell_radius.max()) < 1e-3
