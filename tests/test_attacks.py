"""Attacks against closed forms on linear networks, and what holds for all of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, mlp_model, trained_model
from torch import nn

from specdiag import plugins
from specdiag.attacks._ball import norms
from specdiag.attacks._gradient import ascend
from specdiag.attacks.deepfool import DeepFool
from specdiag.attacks.fgm_l2 import FgmL2
from specdiag.attacks.fgsm import Fgsm
from specdiag.attacks.pgd_l2 import PgdL2
from specdiag.attacks.pgd_linf import PgdLinf
from specdiag.attacks.power import Power
from specdiag.attacks.random_l2 import RandomL2
from specdiag.attacks.wrm import Wrm
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.options import build_attack, load_attack
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec

WITH_EPS = ("pgd-l2", "pgd-linf", "fgm-l2", "fgsm", "random-l2", "random-linf", "power")


def two_classes() -> tuple[Model, Batch, torch.Tensor, torch.Tensor]:
    """A linear network with two classes, points with labels, w_other - w_label per point, and the margins."""
    model = linear_model(classes=2, inputs=6)
    x = torch.rand(10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1] * 5)
    weight = model.head_weight()
    batch = batch_of(model, x, y)
    z = model.logits(batch.x)
    margin = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    return model, batch, weight[1 - y] - weight[y], margin


def margin_at(model: Model, batch: Batch, x: torch.Tensor) -> torch.Tensor:
    z = model.logits(x)
    assert batch.y is not None
    return z.gather(1, batch.y[:, None])[:, 0] - z.gather(1, 1 - batch.y[:, None])[:, 0]


@pytest.mark.parametrize(
    "attack",
    [
        FgmL2(eps=0.3),
        FgmL2(eps=0.3, loss="margin"),
        PgdL2(eps=0.3, alpha=math.inf),
        PgdL2(eps=0.3, alpha=math.inf, loss="temperature=7"),
    ],
)
def test_l2_attacks_on_a_linear_network_are_closed_form(attack: Any) -> None:
    """x + eps (w_other - w_label) / ||.||; the margin falls by eps times that norm."""
    model, batch, slope, margin = two_classes()
    x = attack.perturb(model, batch)
    length = slope.norm(dim=1, keepdim=True)
    assert torch.allclose(x, batch.x + 0.3 * slope / length, atol=1e-14)
    assert torch.allclose(margin_at(model, batch, x), margin - 0.3 * length[:, 0], atol=1e-13)


@pytest.mark.parametrize(
    "attack", [Fgsm(eps=0.1), PgdLinf(eps=0.1, steps=20), PgdLinf(eps=0.1, alpha=math.inf)]
)
def test_linf_attacks_on_a_linear_network_are_closed_form(attack: Any) -> None:
    """The margin falls by eps ||w_other - w_label||_1: the corner is reached from any start in 2 eps of steps."""
    model, batch, slope, margin = two_classes()
    x = attack.perturb(model, batch)
    assert torch.allclose(x, batch.x + 0.1 * slope.sign(), atol=1e-14)
    assert torch.allclose(margin_at(model, batch, x), margin - 0.1 * slope.abs().sum(1), atol=1e-13)


def test_pgd_forgets_its_random_start() -> None:
    """A step of 2 eps and the projection shrink what is left of the start to less than half."""
    model, batch, slope, margin = two_classes()
    best = margin - 0.3 * slope.norm(dim=1)
    found = margin_at(model, batch, PgdL2(eps=0.3, steps=40, alpha=0.6).perturb(model, batch))
    assert bool((found >= best - 1e-12).all())
    assert torch.allclose(found, best, atol=1e-12)


def test_deepfool_on_a_linear_network_is_the_distance_to_the_boundary() -> None:
    model, batch, slope, margin = two_classes()
    x = DeepFool().perturb(model, batch)
    length = norms(x - batch.x)
    right = margin > 0
    assert right.any()
    assert not right.all()
    assert torch.allclose(length[right], 1.02 * (margin / slope.norm(dim=1))[right], rtol=1e-5)
    assert not length[~right].any(), "wrong answers are not moved"
    assert not bool((model.logits(x).argmax(1) == batch.y).any())


def test_deepfool_takes_the_nearest_of_several_boundaries() -> None:
    model = linear_model(classes=4, inputs=5)
    x = torch.rand(12, 5, dtype=torch.float64)
    z = model.logits(x)
    y = z.argmax(1)
    weight = model.head_weight()
    distance = (z.gather(1, y[:, None]) - z) / (weight[y][:, None] - weight[None]).norm(dim=2).clamp_min(
        1e-12
    )
    distance[torch.arange(12), y] = math.inf
    found = norms(DeepFool().perturb(model, batch_of(model, x, y)) - x)
    # each step goes 1e-6 ||x|| beyond the boundary, then the overshoot
    assert torch.allclose(found, 1.02 * (distance.amin(1) + 1e-6 * norms(x)), rtol=1e-9)


def test_power_is_the_first_right_singular_vector() -> None:
    model = mlp_model((12, 30, 5))
    x = torch.rand(6, 12, dtype=torch.float64)
    batch = batch_of(model, x, torch.zeros(6))
    offset = (Power(eps=0.25).perturb(model, batch) - x) / 0.25
    leaf = x.clone().requires_grad_(True)
    z = model.forward(leaf)
    rows = [torch.autograd.grad(z[:, k].sum(), leaf, retain_graph=True)[0] for k in range(5)]
    for row in range(6):
        matrix = np.stack([r[row].numpy() for r in rows])
        first = np.linalg.svd(matrix)[2][0]
        assert abs(offset[row].numpy() @ first) > 1 - 1e-12
        assert np.linalg.norm(offset[row].numpy()) == pytest.approx(1, abs=1e-12)


def test_power_takes_the_side_with_the_larger_loss() -> None:
    model = mlp_model((12, 30, 5))
    x = torch.rand(16, 12, dtype=torch.float64)
    y = model.logits(x).argmax(1)
    found = Power(eps=0.5).perturb(model, batch_of(model, x, y))
    other = 2 * x - found
    losses = [nn.functional.cross_entropy(model.logits(p), y, reduction="none") for p in (found, other)]
    assert bool((losses[0] >= losses[1]).all())


def test_wrm_solves_lemma_8() -> None:
    """delta = grad loss(x + delta) / penalty, where the penalty exceeds the gradient's Lipschitz constant."""
    model = linear_model(classes=3, inputs=6)
    x = torch.rand(8, 6, dtype=torch.float64)
    y = torch.arange(8) % 3
    penalty = float(torch.linalg.matrix_norm(model.head_weight(), 2) ** 2)
    found = Wrm(penalty=penalty, steps=60).perturb(model, batch_of(model, x, y))
    leaf = found.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(model.forward(leaf), y, reduction="sum"), leaf
    )
    assert torch.allclose(found - x, gradient / penalty, atol=1e-9)


def test_wrm_never_ends_below_its_start() -> None:
    model = trained_model()
    batch = digits_batch(model, 32)
    for penalty in (0.05, 0.5, 5.0):
        x = Wrm(penalty=penalty).perturb(model, batch)
        loss = [nn.functional.cross_entropy(model.logits(p), batch.y, reduction="none") for p in (x, batch.x)]
        gain = loss[0].double() - penalty / 2 * norms(x - batch.x).square() - loss[1].double()
        assert bool((gain >= -1e-6).all())


def test_random_l2_is_uniform_on_the_sphere_and_keyed_by_sample() -> None:
    model = linear_model(classes=3, inputs=6)
    x = torch.rand(400, 6, dtype=torch.float64)
    batch = batch_of(model, x)
    offset = RandomL2(eps=2.0).perturb(model, batch) - x
    assert torch.allclose(offset.norm(dim=1), torch.full((400,), 2.0).double(), atol=1e-12)
    assert float(offset.mean(0).abs().max()) < 4 * 2 / math.sqrt(6 * 400)
    second = (offset / 2).T @ (offset / 2) / 400
    assert torch.allclose(second, torch.eye(6).double() / 6, atol=0.06)
    some = dataclasses.replace(batch, x=x[7:11], index=batch.index[7:11])
    assert torch.equal(RandomL2(eps=2.0).perturb(model, some) - x[7:11], offset[7:11])


def test_random_start_fills_the_ball() -> None:
    """Radii of uniform points in a ball: r^D is uniform."""
    model = linear_model(classes=3, inputs=3)
    batch = batch_of(model, torch.rand(2000, 3, dtype=torch.float64))
    from specdiag.attacks._ball import Ball

    radius = norms(Ball("l2", 0.5).random(batch, "test")) / 0.5
    shares = (radius**3).sort().values
    assert float((shares - torch.linspace(0, 1, 2000).double()).abs().max()) < 0.05


@pytest.mark.parametrize("name", WITH_EPS)
@pytest.mark.parametrize("clip", [False, True])
def test_results_stay_in_ball_and_range(name: str, clip: bool) -> None:
    model = trained_model()
    batch = digits_batch(model, 24)
    attack = plugins.load("attack", name)
    for eps in (0.0, 0.05, 0.7):
        x = attack.options(eps=eps, clip=clip).perturb(model, batch)
        offset = (x - batch.x).double()
        length = norms(offset) if attack.norm == "l2" else offset.abs().flatten(1).amax(1)
        assert float(length.max()) <= eps * (1 + 1e-6) + 1e-6
        assert x.dtype == batch.x.dtype
        assert x.shape == batch.x.shape
        if clip:
            assert float(x.min()) >= 0
            assert float(x.max()) <= 1


@pytest.mark.parametrize("name", [name for name in plugins.names("attack") if name != "foolbox"])
def test_results_do_not_depend_on_the_company(name: str) -> None:
    """Rows alone or among others, in another order: the same bytes in padded batches of 8."""
    model = trained_model()
    batch = digits_batch(model, 24)
    options = load_attack(name).options
    given = {"eps": 0.5} if "eps" in {item.name for item in dataclasses.fields(options)} else {}
    if name == "wrm":
        given = {"penalty": 0.2}
    attack = options(**given)
    together = attack.perturb(model, batch)
    rows = torch.tensor([21, 3, 3, 17, 5, 9, 11, 2])
    some = dataclasses.replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows.numpy()])
    assert torch.allclose(attack.perturb(model, some), together[rows], atol=1e-6)


def test_stopping_early_fools_the_same_samples() -> None:
    model = trained_model()
    batch = digits_batch(model, 64)
    attack = PgdL2(eps=0.6)
    full, early = attack.run(model, batch), attack.run(model, batch, stop=True)
    fooled_full = model.logits(full.x).argmax(1) != batch.y
    fooled_early = model.logits(early.x).argmax(1) != batch.y
    assert bool((fooled_early | ~fooled_full).all())
    assert int(early.steps.sum()) < int(full.steps.sum())
    assert not bool(fooled_early[early.steps == 10].all()), "only those that hold on go all the way"
    # a sample that never gives in takes the same way in both
    held = early.steps == 10
    assert torch.allclose(full.x[held], early.x[held], atol=1e-5)


@pytest.mark.parametrize("target", [3, "random", "least-likely"])
def test_targets_are_reached(target: Any) -> None:
    model = trained_model()
    batch = digits_batch(model, 40)
    x = PgdL2(eps=4.0, steps=30, target=target).perturb(model, batch)
    answers = model.logits(x).argmax(1)
    if target == 3:
        assert float((answers == 3).double().mean()) > 0.9
    elif target == "random":
        assert float((answers != batch.y).double().mean()) > 0.9
        assert len(answers.unique()) > 5
    else:
        wanted = model.logits(batch.x).argmin(1)
        assert float((answers == wanted).double().mean()) > 0.9


def test_infinite_alpha_is_x_plus_eps_v_also_when_targeted() -> None:
    """Lemma 1, with v of the last step's own gradient."""
    model = trained_model(torch.float64)
    batch = digits_batch(model, 8)
    for target in (None, 4):
        last: list[torch.Tensor] = []
        attack = PgdL2(eps=0.3, alpha=math.inf, target=target)
        found = attack.run(
            model, batch, observe=lambda k, x, g, kept=last: kept.append(g.v / g.length.view(-1, 1, 1, 1))
        )
        assert torch.allclose(found.x, batch.x + 0.3 * last[-1], atol=1e-14)


def test_predicted_labels_are_used_where_asked_or_where_there_are_none() -> None:
    model = trained_model()
    batch = digits_batch(model, 16)
    answers = model.logits(batch.x).argmax(1)
    wanted = PgdL2(eps=0.5).perturb(model, dataclasses.replace(batch, y=answers))
    assert torch.equal(PgdL2(eps=0.5, label="predicted").perturb(model, batch), wanted)
    assert torch.equal(PgdL2(eps=0.5).perturb(model, dataclasses.replace(batch, y=None)), wanted)


class _Odd(nn.Module):
    """Zero gradient where the first input is negative, NaN where it is above one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, :1]
        z = torch.relu(first) * torch.tensor([[1.0, -2.0, 0.5]]).to(x) + x[:, 1:2] * torch.relu(first)
        return torch.cat([z[:, :1], z[:, 1:] * 2], 1) + 0 * torch.log(1 - first.clamp_min(0))


def test_samples_without_a_gradient_are_counted_and_left_where_they_are() -> None:
    model = Model(_Odd(), (2,), dtype=torch.float64, example=torch.tensor([[0.5, 0.5], [0.2, 0.1]]))
    x = torch.tensor([[0.5, 0.5], [-0.5, 0.2], [1.5, 0.3], [0.3, 0.9]])
    batch = batch_of(model, x, torch.zeros(4))
    for attack in (PgdL2(eps=0.01, start="clean"), FgmL2(eps=0.01), PgdLinf(eps=0.01, start="clean")):
        found = attack.run(model, batch)
        assert found.dead.tolist() == [False, True, True, False]
        assert torch.equal(found.x[1:3], batch.x[1:3])
        assert torch.isfinite(found.x).all()
        assert bool((found.x[0] != batch.x[0]).any())
    assert DeepFool().run(model, batch).dead.tolist() == [False, True, True, False]


def test_sum_of_squares_needs_a_start_and_no_target() -> None:
    model = linear_model()
    batch = batch_of(model, torch.rand(3, 6), torch.zeros(3))
    for attack in (
        PgdL2(eps=1.0, loss="sum-of-squares", start="clean"),
        FgmL2(eps=1.0, loss="sum-of-squares"),
        Fgsm(eps=1.0, loss="sum-of-squares"),
        Wrm(penalty=1.0, loss="sum-of-squares"),
        PgdL2(eps=1.0, loss="sum-of-squares", target=1),
    ):
        with pytest.raises(UsageError) as error:
            attack.perturb(model, batch)
        assert "sum-of-squares" in str(error.value)
        assert error.value.todo


def test_bad_input_is_explained() -> None:
    with pytest.raises(UsageError, match="below the smallest"):
        build_attack(AttackSpec("pgd-l2", {"eps": -1}))
    with pytest.raises(UsageError, match="pgd-l2"):
        load_attack("pdg-l2")
    with pytest.raises(UsageError, match="no loss named 'entropy'"):
        build_attack(AttackSpec("pgd-l2", {"loss": "entropy"}))
    model = linear_model()
    batch = batch_of(model, torch.rand(3, 6), torch.zeros(3))
    with pytest.raises(UsageError, match="has no eps"):
        PgdL2().perturb(model, batch)
    with pytest.raises(UsageError, match="classes are 0 to 2"):
        PgdL2(eps=1.0, target=3).perturb(model, batch)


def test_one_eps_per_sample() -> None:
    model = trained_model()
    batch = digits_batch(model, 24)
    eps: Any = torch.linspace(0.1, 1.0, 24, dtype=torch.float64)
    for stop in (False, True):
        x = PgdL2(eps=eps).run(model, batch, stop=stop).x
        assert bool((norms(x - batch.x) <= eps * (1 + 1e-5)).all())


def test_ascend_on_a_network_in_training() -> None:
    """The function behind the attacks takes any callable; parameters get no gradients."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    found = ascend(network, x, y, norm="l2", eps=0.5, steps=5, low=0.0, high=1.0)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert float(loss(network(found), y)) > float(loss(network(x), y))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not found.requires_grad
