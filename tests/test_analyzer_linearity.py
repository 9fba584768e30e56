"""Cells, walls and walks against brute force; deviation from linearity against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, mlp_model, trained_model
from torch import nn

from specdiag import figures
from specdiag.analyzers import _cells, _paths, linearity
from specdiag.attacks._ball import norms
from specdiag.errors import ModelError, UsageError
from specdiag.linearise import Linearised
from specdiag.model import Model
from specdiag.runner import as_numpy, to_dataset
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec


def measured(model: Model, batch: Batch, **options: Any) -> Any:
    spec = options.pop("attack", AttackSpec("pgd-l2", {"eps": 0.3}))
    arrays = linearity.compute(model, batch, linearity.Options(attack=spec, **options))
    found = {name: as_numpy(value) for name, value in arrays.items()}
    coords = {name: found.pop(name) for name in list(found) if name in linearity.ANALYZER.coordinates}
    return to_dataset(linearity.ANALYZER, found, coords, batch.index)


def directions(x: torch.Tensor, seed: int = 3) -> torch.Tensor:
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return d / norms(d).reshape(-1, *[1] * (x.ndim - 1))


def cases() -> list[tuple[Model, Batch]]:
    wide = mlp_model((100, 40, 40, 5))
    digits = trained_model(torch.float64)
    points = torch.rand(8, 100, generator=torch.Generator().manual_seed(0))
    return [(wide, batch_of(wide, points)), (digits, digits_batch(digits, 8))]


@pytest.mark.parametrize("number", [0, 1])
def test_cell_radius_is_the_smallest_distance_of_all_walls(number: int) -> None:
    """Against |z_i| / ||grad z_i|| of every activation and max-pool entry, one gradient each."""
    model, batch = cases()[number]
    radius, exact = _cells.cell_radius(model, batch, 20_000)
    leaf = batch.x.clone().requires_grad_(True)
    walls = _cells.wall_distances(model)(leaf)
    gradients = torch.stack(
        [
            torch.autograd.grad(walls[:, i].sum(), leaf, retain_graph=True)[0].flatten(1).norm(dim=1)
            for i in range(walls.shape[1])
        ],
        1,
    )
    brute = torch.where(gradients > 0, walls.detach().abs() / gradients, torch.inf).amin(1)
    assert bool(exact.all())
    assert torch.allclose(radius, brute, rtol=1e-12)


def test_a_small_budget_gives_an_upper_bound_and_says_so() -> None:
    model, batch = cases()[0]
    radius, _ = _cells.cell_radius(model, batch, 20_000)
    bound, exact = _cells.cell_radius(model, batch, 1)
    assert bool((bound >= radius).all())
    assert not bool(exact.all())


@pytest.mark.parametrize("number", [0, 1])
def test_radius_along_a_direction_matches_a_bisection_on_activation_signs(number: int) -> None:
    model, batch = cases()[number]
    d = directions(batch.x)
    along = _cells.radius_along(Linearised(_cells.wall_distances(model), batch.x), d)
    clean = _cells.states(model, batch.x)

    def same(t: torch.Tensor) -> torch.Tensor:
        now = _cells.states(model, batch.x + d * t.reshape(-1, *[1] * (d.ndim - 1)))
        return (now[0] == clean[0]).all(1) & (now[1] == clean[1]).all(1)

    assert bool(same(along * (1 - 1e-9)).all())
    low, high = torch.zeros_like(along), along * 1.0001
    assert not bool(same(high).any())
    for _ in range(60):
        middle = (low + high) / 2
        inside = same(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    assert torch.allclose(low, along, rtol=1e-9)


@pytest.mark.parametrize("number", [0, 1])
def test_the_pieces_of_a_segment_add_up(number: int) -> None:
    """Lemma 3.1 to rounding, and as many walls as a fine scan of the activations finds."""
    model, batch = cases()[number]
    d = directions(batch.x)
    marks = torch.tensor([0.2, 0.5], dtype=torch.float64)
    found = _paths.walk(model, batch.x, d, marks, 5000)
    change = model.logits(batch.x + 0.5 * d) - model.logits(batch.x)
    assert bool(found.finished.all())
    assert float((found.moved - change).abs().max()) < 1e-13 * max(1.0, float(change.abs().max()))
    first = _cells.radius_along(Linearised(_cells.wall_distances(model), batch.x), d)
    assert torch.allclose(found.first[first < 0.5], first[first < 0.5], rtol=1e-9)
    before = _cells.states(model, batch.x)
    scanned = torch.zeros(len(batch), dtype=torch.int64)
    for t in np.linspace(0, 0.5, 4001)[1:]:
        now = _cells.states(model, batch.x + t * d)
        scanned += (now[0] != before[0]).sum(1)
        scanned += ((now[1] != before[1]) & (now[1] >= 0) & (before[1] >= 0)).sum(1)
        before = now
    # two flips of one unit inside a step of the scan go unseen
    assert bool((found.walls >= scanned).all())
    assert float((found.walls - scanned).double().mean()) < 0.1 * float(found.walls.double().mean())
    assert bool((found.passed[:, 0] <= found.passed[:, 1]).all())
    assert torch.equal(found.passed[:, 1], found.walls)


def test_walking_stops_at_its_budget_and_at_other_kinks() -> None:
    model, batch = cases()[1]
    marks = torch.tensor([0.5], dtype=torch.float64)
    found = _paths.walk(model, batch.x, directions(batch.x), marks, 3)
    assert not bool(found.finished.any())
    odd = Model(nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 2)), (4,), dtype=torch.float64)
    with pytest.raises(ModelError, match="cannot be walked"):
        _paths.walk(odd, torch.zeros(1, 4).double(), torch.ones(1, 4).double(), marks, 3)


def test_smooth_modules_are_found_by_name() -> None:
    flat = trained_model()
    assert _cells.curved_module(flat, digits_batch(flat, 1).x) is None
    network = nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 2)
    )
    model = Model(network, (6,))
    assert _cells.curved_module(model, torch.rand(1, 6)) == ("2.1", "gelu")
    with pytest.raises(ModelError, match=r"'2\.1' applies gelu"):
        _cells.require_flat(model, torch.rand(1, 6), "Use another.")


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) * torch.relu(self.b(x))


def test_products_of_activations_are_not_flat_but_products_with_weights_are() -> None:
    assert _cells.curved_module(Model(_Gate(), (5,)), torch.rand(1, 5)) == ("the network itself", "mul")
    assert _cells.curved_module(linear_model(), torch.rand(1, 6).double()) is None


def test_a_linear_network_never_deviates() -> None:
    model = linear_model(classes=3, inputs=6)
    batch = batch_of(model, torch.rand(7, 6), torch.zeros(7))
    data = measured(model, batch, layer="logits", walk=5)
    scale = float(data.change.max())
    assert float(data.deviation.max()) < 1e-14 * scale
    assert np.allclose(data.sigma_max, float(torch.linalg.matrix_norm(model.head_weight(), 2)), rtol=1e-12)
    assert (data.same_activations == 1).all()
    assert np.isinf(data.first_wall).all()
    assert float(data.path_error.max()) < 1e-14
    assert (data.walls_crossed == 0).all()


def test_deviation_starts_at_the_first_wall() -> None:
    """Zero inside the cell, positive beyond, along each of the three directions."""
    model = mlp_model((12, 20, 20, 4))
    batch = batch_of(model, torch.rand(24, 12, generator=torch.Generator().manual_seed(5)), torch.zeros(24))
    data = measured(model, batch, layer="logits", distances=(0.003, 0.03, 0.3, 3.0), walk=500)
    inside = data.distance < data.first_wall
    assert bool(inside.any())
    assert bool((~inside).any())
    assert float(data.deviation.where(inside).max()) < 1e-12
    assert float(data.deviation.where(~inside & (data.walls_crossed > 0)).min()) > 0
    assert bool((data.same_activations.where(inside, 1) == 1).all())
    assert bool(((data.walls_crossed > 0) == ~inside).all())
    assert float(data.path_error.max()) < 1e-12
    assert bool((data.activations_changed <= data.walls_crossed).all())


def test_directions_are_what_they_are_called() -> None:
    model = trained_model(torch.float64)
    batch = digits_batch(model, 64)
    data = measured(model, batch)
    mean = data.deviation.mean("sample")
    assert data.direction.values.tolist() == ["random", "adversarial", "dominant"]
    assert bool((mean.sel(direction="adversarial") > mean.sel(direction="random")).all())
    changed = data.change.mean("sample")
    assert bool((changed.sel(direction="dominant") > changed.sel(direction="random")).all())
    assert np.allclose(data.distance, 0.6 * np.arange(1, 13) / 12)
    # the first step of the dominant direction moves the logits by sigma
    logits = measured(model, batch, layer="logits", distances=(1e-6,))
    ratio = logits.change.sel(direction="dominant")[:, 0] / (1e-6 * logits.sigma_clean)
    assert np.median(ratio) == pytest.approx(1, abs=1e-3)
    figure = figures.new_figure()
    linearity.plot({"one": data, "two": data}, figure)
    assert len(figure.axes) == 2
    assert linearity.sentence(data).startswith("At distance 0.6")
    assert len(linearity.table(data)[1]) == 12


def test_readapting_finds_at_least_as_much_movement() -> None:
    model = trained_model()
    batch = digits_batch(model, 48)
    fixed = measured(model, batch, layer="logits", sigma=False)
    adapted = measured(model, batch, layer="logits", sigma=False, readapt=True)
    assert "sigma_max" not in fixed
    a, b = (run.change.sel(direction="adversarial").mean("sample").values for run in (fixed, adapted))
    assert b[-1] >= 0.98 * a[-1]
    assert np.array_equal(fixed.change.sel(direction="random"), adapted.change.sel(direction="random"))


def test_linf_attacks_are_measured_in_l2() -> None:
    model = trained_model()
    data = measured(model, digits_batch(model, 8), attack=AttackSpec("pgd-linf", {"eps": 0.1}), sigma=False)
    assert float(data.distance[-1]) == pytest.approx(2 * 0.1 * 8)


def test_networks_that_are_not_flat_keep_their_deviation() -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), (6,), dtype=torch.float64)
    data = measured(model, batch_of(model, torch.rand(5, 6), torch.zeros(5)), walk=10)
    assert "first_wall" not in data
    assert float(data.deviation.min()) > 0


def test_distances_need_an_eps_or_a_list() -> None:
    model = trained_model()
    with pytest.raises(UsageError, match="--distances"):
        measured(model, digits_batch(model, 4), attack=AttackSpec("deepfool"))
