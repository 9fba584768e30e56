"""Training methods against closed forms, dense matrices and finite differences, in float64."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specdiag import plugins
from specdiag.attacks._ball import Ball
from specdiag.errors import UsageError
from specdiag.linalg.layers import from_module
from specdiag.loading.architectures import network_for
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.sampling import Draws
from specdiag.schema import build, fields
from specdiag.training import _covariance
from specdiag.training._clip import clipped_kernel, clipped_matrix
from specdiag.training._context import Run, Step, torch_seed
from specdiag.training._data import Samples
from specdiag.training._layers import linear_layers
from specdiag.training._match import held_out_accuracy
from specdiag.training._recipe import parse
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig


def method(name: str, **options: Any) -> Any:
    return build(plugins.load("training", name).options, options)


def run_of(network: nn.Module, shape: tuple[int, ...], classes: int = 3) -> Run:
    torch.manual_seed(7)
    x = torch.rand(64, *shape).double()
    samples = Samples(x, torch.zeros(64, dtype=torch.int64), np.arange(64))
    return Run(
        network.double(),
        nn.Identity(),
        Settings(),
        shape,
        classes,
        2.0,
        0.0,
        1.0,
        Draws(0),
        torch.device("cpu"),
        samples,
    )


def linear(classes: int = 3, size: int = 6) -> Run:
    torch.manual_seed(0)
    return run_of(nn.Sequential(nn.Linear(size, classes)), (size,), classes)


def convolutional() -> Run:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    run = run_of(network, (1, 6, 6))
    network[1].running_mean.normal_(0, 0.1)
    network[1].running_var.uniform_(0.5, 2)
    network.eval()
    return run


def step_of(run: Run, count: int = 8, initial: Any = None) -> Step:
    torch.manual_seed(1)
    x = torch.rand(count, *run.input_shape).double()
    step = Step(run, x, torch.arange(count) % run.classes, np.arange(count), 0, 0)
    if initial is not None:
        step.state = initial.initial_state(run)
    return step


def gradients(run: Run, value: torch.Tensor) -> list[torch.Tensor]:
    return [
        g.detach()
        for g in torch.autograd.grad(value, list(run.network.parameters()), allow_unused=True)
        if g is not None
    ]


def dense(run: Run) -> list[torch.Tensor]:
    """Each layer as a matrix."""
    found = []
    for layer in linear_layers(run, "operator"):
        if layer.convolution is None:
            found.append(layer.weight.detach())
        else:
            found.append(layer.convolution.operator().dense())
    return found


def jacobians(run: Run, x: torch.Tensor) -> torch.Tensor:
    """(N, K, D) by plain autograd, for a network in eval mode."""
    rows = [torch.autograd.functional.jacobian(lambda z: run.forward(z[None])[0], sample) for sample in x]
    return torch.stack(rows).flatten(2)


def with_batch_statistics(run: Run, x: torch.Tensor) -> Run:
    """The same network in eval mode, its running statistics those of the batch."""
    network = copy.deepcopy(run.network).train()
    network[1].momentum = 1.0
    network(x)
    count = x.numel()
    # what BatchNorm keeps is the unbiased variance, what it divides by is the biased one
    network[1].running_var.mul_((count - 1) / count)
    return dataclasses.replace(run, network=network.eval())


@pytest.mark.parametrize("name", ["gradient-penalty", "cross-lipschitz", "gradient-norm"])
def test_penalties_keep_the_statistics_of_the_batch(name: str) -> None:
    run = convolutional()
    run.network.train()
    step = step_of(run)
    still = with_batch_statistics(run, step.x)
    with step.fixed() as forward:
        inside = forward(step.x)
        one = forward(step.x[:1])
    torch.testing.assert_close(inside, still.forward(step.x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, inside[:1], rtol=1e-12, atol=1e-12)
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    penalty = method(name).penalty(step)
    torch.testing.assert_close(penalty.detach(), method(name).penalty(step_of(still)).detach())
    assert all(torch.equal(before[key], value) for key, value in run.network.state_dict().items())
    # BatchNorm undoes a scale of the weights before it, so no penalty can be lowered by one
    (found,) = torch.autograd.grad(penalty, run.network[0].weight)
    along = float((found * run.network[0].weight).sum().detach())
    assert abs(along) < 1e-3 * float((found.norm() * run.network[0].weight.norm()).detach())


# attacks


def towards(run: Run, step: Step) -> torch.Tensor:
    weight = run.network[0].weight.detach()
    probabilities = run.forward(step.x).softmax(1).detach()
    return (probabilities - F.one_hot(step.y, run.classes)) @ weight


@pytest.mark.parametrize(
    ("name", "norm"), [("fgm", "l2"), ("fgsm", "linf"), ("adversarial-augmentation", "linf")]
)
def test_one_step_points_in_closed_form(name: str, norm: str) -> None:
    run = linear()
    step = step_of(run)
    g = towards(run, step)
    direction = g.sign() if norm == "linf" else g / g.norm(dim=1, keepdim=True)
    found = method(name, eps=0.05).perturb(step)
    torch.testing.assert_close(found, step.x + 0.05 * direction, rtol=1e-12, atol=1e-14)


def test_wrm_points_are_stationary() -> None:
    run = linear()
    step = step_of(run)
    found = method("wrm", penalty_weight=3.0, steps=200).perturb(step)
    moved = step_of(run)
    moved.x = found
    torch.testing.assert_close(found - step.x, towards(run, moved) / 3.0, rtol=1e-6, atol=1e-9)


def test_pgm_is_plain_attack_training_from_the_clean_point() -> None:
    pgm = method("pgm", eps=0.3)
    assert (pgm.objective, pgm.start, pgm.steps, pgm.step_length(0.3)) == ("only", "clean", 15, 0.04)
    run = convolutional()
    step = step_of(run)
    loss = pgm.batch_loss(step)
    assert float(loss.detach()) > float(step.cross_entropy(step.logits).detach())
    offsets = pgm.perturb(step) - step.x
    assert float(offsets.flatten(1).norm(dim=1).max()) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize("start", ["clean", "random"])
def test_gradient_through_the_attack(start: str) -> None:
    run = convolutional()
    through = method("adversarial", eps=0.02, steps=2, objective="only", through_attack=True, start=start)
    step = step_of(run)
    weight = run.network[3].weight
    (found,) = torch.autograd.grad(through.batch_loss(step), weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-6 * direction
        values.append(float(through.batch_loss(step).detach()))
        with torch.no_grad():
            weight -= sign * 1e-6 * direction
    assert float((found * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)
    plain = method("adversarial", eps=0.02, steps=2, objective="only", start=start)
    (without,) = torch.autograd.grad(plain.batch_loss(step), weight)
    # the part that goes through the perturbation is of second order in eps, but not zero
    assert 1e-9 < float((found - without).norm() / found.norm()) < 0.2


def test_noise_has_the_deviation_asked_for_and_differs_by_epoch() -> None:
    run = linear(size=400)
    noise = method("noise", deviation=0.3)
    first, second = step_of(run, 50), step_of(run, 50)
    second.epoch = 1
    drawn = noise.perturb(first) - first.x
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noise.perturb(first), noise.perturb(step_of(run, 50)))
    assert not torch.equal(noise.perturb(first), noise.perturb(second))


# spectral penalties


@pytest.mark.parametrize("kind", ["operator", "kernel"])
def test_global_penalty_is_the_sum_of_squared_norms(kind: str) -> None:
    run = convolutional()
    snr = method("global-snr", lam=0.2, iterations=400, layer_norm=kind)
    penalty = snr.penalty(step_of(run, initial=snr))
    if kind == "operator":
        matrices = dense(run)
    else:
        matrices = [run.network[k].weight.detach().flatten(1) for k in (0, 3, 6)]
    wanted = 0.1 * sum(float(torch.linalg.matrix_norm(matrix, 2)) ** 2 for matrix in matrices)
    assert float(penalty.detach()) == pytest.approx(wanted, rel=1e-10)


def test_global_penalty_has_the_gradient_lambda_sigma_u_v() -> None:
    run = linear()
    snr = method("global-snr", lam=0.2, iterations=400)
    (found,) = torch.autograd.grad(snr.penalty(step_of(run, initial=snr)), run.network[0].weight)
    u, values, vh = torch.linalg.svd(run.network[0].weight.detach())
    torch.testing.assert_close(found, 0.2 * values[0] * torch.outer(u[:, 0], vh[0]), rtol=1e-8, atol=1e-10)


def test_global_penalty_keeps_its_vectors() -> None:
    run = convolutional()
    snr = method("global-snr", lam=2.0)
    step = step_of(run, initial=snr)
    values = [float(snr.penalty(step).detach()) for _ in range(300)]
    assert values[0] < values[-1]
    wanted = sum(float(torch.linalg.matrix_norm(matrix, 2)) ** 2 for matrix in dense(run))
    assert values[-1] == pytest.approx(wanted, rel=1e-8)


def test_data_dependent_penalty_is_the_squared_norm_of_the_jacobian() -> None:
    run = convolutional()
    step = step_of(run)
    sigma = torch.linalg.matrix_norm(jacobians(run, step.x), 2)
    snr = method("dd-snr", lam=0.3, eps=0.5, iterations=300, form="jacobian")
    wanted = 0.3 * 0.25 / 2 * float(sigma.square().mean())
    assert float(snr.penalty(step).detach()) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("iterations", [1, 10])
def test_both_forms_have_one_gradient_inside_the_cell(iterations: int) -> None:
    run = convolutional()
    step = step_of(run)
    forms = ("difference", "jacobian")
    penalties = [method("dd-snr", lam=0.3, eps=1e-5, form=form, iterations=iterations) for form in forms]
    found = [
        torch.cat([g.flatten() for g in gradients(run, penalty.penalty(step))][:4]) for penalty in penalties
    ]
    # the difference of two outputs keeps 16 digits less the 5 of eps and those of sigma
    assert float((found[0] - found[1]).norm()) < 1e-8 * float(found[1].norm())


def test_theorem_1_same_parameter_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = convolutional()
    # lambda is large enough for the eps^2 of the regulariser to weigh as much as the loss
    eps, lam = 1e-5, 1e10
    ascent = {"eps": eps, "steps": 6, "alpha": math.inf, "attack_loss": "sum-of-squares"}
    attack = parse("adversarial", {**ascent, "attack_weight": lam})
    snr = parse("dd-snr", {"eps": eps, "lam": lam, "iterations": 6})
    monkeypatch.setattr(type(snr.parts["dd-snr"]), "start", lambda self, step: attack_start(step, 1e-5))
    weights = []
    for recipe in (attack, snr, parse("standard")):
        network = copy.deepcopy(run.network)
        own = dataclasses.replace(run, network=network)
        optimiser = torch.optim.SGD(network.parameters(), 0.1)
        recipe.loss(step_of(own), recipe.initial_states(own)).backward()
        optimiser.step()
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    adversarial, regularised, standard = weights
    assert float((adversarial - regularised).norm()) < 1e-8 * float((regularised - standard).norm())
    assert float((regularised - standard).norm()) > 1e-3


def attack_start(step: Step, eps: float) -> torch.Tensor:
    """The unit vectors along which the attack's random start lies."""
    draws = Draws(torch_seed(0, step.purpose("attack")))
    batch = dataclasses.replace(step.as_batch(), draws=draws)
    offset = Ball("l2", eps).random(batch, "pgd-l2/start")
    return offset / offset.flatten(1).norm(dim=1)[:, None, None, None]


# gradient penalties


@pytest.mark.parametrize(("q", "dual"), [(1, "linf"), (2, "l2")])
def test_gradient_penalty_in_closed_form(q: int, dual: str) -> None:
    run = linear()
    step = step_of(run)
    penalty = method("gradient-penalty", q=q, eps=0.3)
    assert penalty.dual == dual
    wanted = 0.15 * towards(run, step).norm(p=q, dim=1).mean()
    torch.testing.assert_close(penalty.penalty(step).detach(), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("q", "norm"), [(1, "linf"), (2, "l2")])
def test_augmentation_and_penalty_agree_to_first_order(q: int, norm: str) -> None:
    run = convolutional()
    ratios = []
    for eps in (1e-2, 1e-3, 1e-4):
        augmented = method("adversarial-augmentation", eps=eps, norm=norm).batch_loss(step_of(run))
        step = step_of(run)
        penalised = step.cross_entropy(step.logits) + method("gradient-penalty", q=q, eps=eps).penalty(step)
        ratios.append(abs(float((augmented - penalised).detach())) / eps)
    assert ratios[2] < 1e-3
    assert ratios[1] < 0.3 * ratios[0]
    assert ratios[2] < 0.3 * ratios[1]


def test_gradient_of_a_penalty_against_finite_differences() -> None:
    run = convolutional()
    run.network.train()
    cases = [("gradient-penalty", {"q": 2}), ("gradient-norm", {}), ("cross-lipschitz", {})]
    for name, options in cases:
        weight = run.network[0].weight
        penalty = method(name, **options)
        (found,) = torch.autograd.grad(penalty.penalty(step_of(run)), weight)
        direction = torch.randn_like(weight)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-6 * direction
            values.append(float(penalty.penalty(step_of(run)).detach()))
            with torch.no_grad():
                weight -= sign * 1e-6 * direction
        wanted = (values[0] - values[1]) / 2e-6
        assert float((found * direction).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_cross_lipschitz_against_the_double_sum() -> None:
    run = convolutional()
    step = step_of(run)
    matrix = jacobians(run, step.x)
    wanted = 0.0
    for h in range(3):
        for k in range(3):
            wanted += float((matrix[:, h] - matrix[:, k]).square().sum(1).mean()) / 9
    assert float(method("cross-lipschitz", lam=0.4).penalty(step).detach()) == pytest.approx(0.4 * wanted)


def test_gradient_norm_is_the_double_sum_over_classes() -> None:
    run = convolutional()
    step = step_of(run)
    matrix = jacobians(run, step.x)
    q = run.forward(step.x).softmax(1).detach()
    own = matrix[torch.arange(8), step.y]
    differences = own[:, None] - matrix
    # simongabriel2019 eq. 18: the sum over k, h of q_k q_h <grad f_c - grad f_k, grad f_c - grad f_h>
    wanted = torch.einsum("nk,nh,nkd,nhd->n", q, q, differences, differences).mean()
    penalty = method("gradient-norm", lam=2.0).penalty(step)
    torch.testing.assert_close(penalty.detach(), wanted, rtol=1e-10, atol=0)


# structured gradient regularisation


def test_sgr_with_a_matrix_in_closed_form() -> None:
    run = linear()
    sgr = method("sgr", lam=0.5, source="gradient")
    step = step_of(run, initial=sgr)
    penalty = sgr.penalty(step)
    g = towards(run, step)
    sigma = g.T @ g / len(g)
    sigma = sigma * float(run.samples.x.var(0, correction=0).mean()) / sigma.diagonal().mean()
    wanted = 0.25 * torch.einsum("nd,de,ne->n", g, sigma, g).mean()
    assert float(penalty.detach()) == pytest.approx(float(wanted), rel=1e-6)


def test_running_average() -> None:
    run = linear()
    sgr = method("sgr", source="sign", decay=0.75)
    step = step_of(run, initial=sgr)
    moments = []
    for seed in range(3):
        torch.manual_seed(seed)
        step.x = torch.rand_like(step.x)
        g = towards(run, step).sign()
        moments.append(g.T @ g / len(g))
        sgr.penalty(step)
    wanted = 0.75 * (0.75 * moments[0] + 0.25 * moments[1]) + 0.25 * moments[2]
    torch.testing.assert_close(step.state["moments"], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("source", ["pgd", "fgsm", "gradient", "sign"])
@pytest.mark.parametrize("form", ["full", "function"])
def test_every_source_and_form_gives_a_penalty(source: str, form: str) -> None:
    run = convolutional()
    sgr = method("sgr", source=source, covariance=form)
    penalty = sgr.penalty(step_of(run, initial=sgr))
    assert len(gradients(run, penalty)) >= 3
    assert math.isfinite(float(penalty.detach()))


def test_displacement_moments_against_all_pairs() -> None:
    torch.manual_seed(0)
    delta = torch.randn(5, 2, 4, 3).double()
    found = _covariance.displacement_moments(delta)
    assert found.shape == (2, 2, 7, 5)
    for dy in range(-3, 4):
        for dx in range(-2, 3):
            pairs = [
                torch.einsum("na,nb->ab", delta[:, :, y, x], delta[:, :, y + dy, x + dx]) / 5
                for y in range(4)
                for x in range(3)
                if 0 <= y + dy < 4 and 0 <= x + dx < 3
            ]
            wanted = torch.stack(pairs).mean(0)
            torch.testing.assert_close(found[:, :, dy + 3, dx + 2], wanted, rtol=1e-10, atol=1e-12)


def test_function_form_equals_the_matrix_on_a_stationary_covariance() -> None:
    torch.manual_seed(0)
    side, channels = 6, 2
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(
        -1, 2
    )
    distance = (grid[:, None] - grid[None]).double().norm(dim=2)
    between = torch.tensor([[1.0, 0.4], [0.4, 1.0]]).double()
    matrix = torch.kron(between, torch.exp(-distance / 2))
    steps = torch.arange(1 - side, side)
    lengths = (steps[:, None].square() + steps[None].square()).double().sqrt()
    function = between[:, :, None, None] * torch.exp(-lengths / 2)
    g = torch.randn(4, channels, side, side).double()
    wanted = _covariance.times_full(matrix, g)
    torch.testing.assert_close(_covariance.times_displacement(function, g), wanted, rtol=1e-12, atol=1e-12)
    assert _covariance.mean_diagonal(matrix) == _covariance.mean_diagonal(function) == 1.0
    assert function.numel() / matrix.numel() < 0.1
    # estimated from samples, both forms tend to the same matrix
    root = torch.linalg.cholesky(matrix)
    drawn = (torch.randn(20000, 72).double() @ root.T).reshape(-1, channels, side, side)
    torch.testing.assert_close(_covariance.displacement_moments(drawn), function, rtol=0, atol=0.06)


# weight steps


def test_matrices_are_clipped_to_the_nearest_one() -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4).double())[0] for n in (6, 5))
    matrix = u @ torch.diag(torch.tensor([4.0, 2.0, 0.5, 0.1]).double()) @ v.T
    wanted = u @ torch.diag(torch.tensor([1.0, 1.0, 0.5, 0.1]).double()) @ v.T
    torch.testing.assert_close(clipped_matrix(matrix, 1.0), wanted, rtol=1e-12, atol=1e-14)


def circular(kernel: torch.Tensor, side: int, groups: int) -> torch.Tensor:
    layer = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        kernel.shape[2],
        bias=False,
        padding=kernel.shape[2] // 2,
        padding_mode="circular",
        groups=groups,
    ).double()
    layer.weight.data = kernel
    return torch.linalg.svdvals(from_module(layer, (side, side)).operator().dense())


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_are_clipped(groups: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(4, 4 // groups, 5, 5).double()
    clipped = clipped_kernel(whole, (5, 5), 3.0, groups)
    before, after = circular(whole, 5, groups), circular(clipped, 5, groups)
    # a kernel as large as the image loses nothing to cropping
    torch.testing.assert_close(after, before.clamp(max=3.0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(clipped_kernel(whole, (5, 5), 1e3, groups), whole, rtol=1e-12, atol=1e-12)
    small = torch.randn(4, 4 // groups, 3, 3).double()
    bound = 0.5 * float(circular(small, 8, groups)[0])
    cropped = float(circular(clipped_kernel(small, (8, 8), bound, groups), 8, groups)[0])
    assert cropped < 0.75 * 2 * bound


SMALL: dict[str, Any] = {
    "epochs": 2,
    "train_samples": 160,
    "batch_size": 32,
    "test_samples": 40,
    "curve_samples": 16,
    "device": "cpu",
}


def slim(out: Path, name: str, options: Any = None, **settings: Any) -> TrainConfig:
    return TrainConfig(
        method=name,
        out=out,
        options=options or {},
        settings=Settings(**{**SMALL, **settings}),
        arch="cnn4",
        arch_args={"width": 4},
    )


def true_norms(path: Path) -> dict[str, float]:
    """Spectral norm of every layer of a cnn4 on 8x8 images, from its matrix."""
    checkpoint = read_checkpoint(path)
    known = checkpoint.metadata
    network = network_for(checkpoint.tensors, known["architecture"], known["arch_args"])[0].double()
    norms = {}
    for name, side in (("conv1", 8), ("conv2", 8), ("conv3", 4), ("conv4", 4)):
        matrix = from_module(network.get_submodule(name), (side, side)).operator().dense()
        norms[name] = float(torch.linalg.matrix_norm(matrix, 2))
    norms["linear"] = float(torch.linalg.matrix_norm(network.linear.weight.detach(), 2))
    return norms


def test_spectral_normalisation_bounds_the_true_norms(tmp_path: Path) -> None:
    ours = true_norms(train(slim(tmp_path / "a.pt", "spectral-normalisation", {"beta": 0.8}, epochs=4)))
    assert max(ours.values()) <= 0.8 * 1.0001
    exact = {"beta": 0.8, "enforce": "equal"}
    equal = true_norms(train(slim(tmp_path / "b.pt", "spectral-normalisation", exact)))
    assert list(equal.values()) == pytest.approx([0.8] * 5, rel=1e-4)
    kernels = {"beta": 0.8, "enforce": "equal", "layer_norm": "kernel"}
    miyato = true_norms(train(slim(tmp_path / "c.pt", "spectral-normalisation", kernels)))
    assert max(miyato.values()) > 0.8 * 1.5


def test_singular_values_are_clipped_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    free = true_norms(train(slim(tmp_path / "a.pt", "standard")))
    clipped = true_norms(train(slim(tmp_path / "b.pt", "sv-clip", {"bound": 0.5})))
    assert clipped["linear"] <= 0.5 * (1 + 1e-6)
    assert all(clipped[name] < 0.8 * free[name] for name in free)


# the rest


def test_dropout_acts_in_training_alone() -> None:
    run = linear(size=500)
    method("dropout", rate=0.5).prepare(run)
    x = torch.ones(1, 500).double()
    run.network.eval()
    torch.testing.assert_close(run.forward(x), run.network[0].weight.sum(1)[None] + run.network[0].bias)
    run.network.train()
    torch.manual_seed(0)
    assert not torch.equal(run.forward(x), run.forward(x))
    assert set(run.network.state_dict()) == {"0.weight", "0.bias"}


def test_weight_decay_is_the_optimisers() -> None:
    assert parse("weight-decay", {"lam": 0.25}).adjust(Settings()).weight_decay == 0.25


def test_sums_of_methods(tmp_path: Path) -> None:
    for several, kind in (("pgm+fgm", "attack"), ("spectral-normalisation+sv-clip", "weight step")):
        with pytest.raises(UsageError, match=kind):
            parse(several)
    options = {"global-snr.lam": 0.125, "gradient-norm.lam": 0.5, "eps": 0.25, "steps": 2}
    recipe = parse("pgm+global-snr+gradient-norm+spectral-normalisation", options)
    assert recipe.parts["global-snr"].lam == 0.125
    assert recipe.parts["gradient-norm"].lam == 0.5
    assert recipe.parts["pgm"].attack_weight == "auto"
    known = read_checkpoint(train(slim(tmp_path / "a.pt", recipe.name, options))).metadata["train"]
    assert (known["method"], known["eps"], known["beta"]) == (recipe.name, 0.25, 1.0)


def test_a_sum_adds_its_penalties_to_the_attacks_loss() -> None:
    run = linear()
    recipe = parse("fgm+gradient-norm+cross-lipschitz", {"eps": 0.1})
    total = recipe.loss(step_of(run), recipe.initial_states(run))
    parts = [
        method("fgm", eps=0.1).batch_loss(step_of(run)),
        method("gradient-norm").penalty(step_of(run)),
        method("cross-lipschitz").penalty(step_of(run)),
    ]
    torch.testing.assert_close(total, parts[0] + parts[1] + parts[2], rtol=1e-12, atol=0)


FACTORY = """
import torch
from torch import nn


def small(norm="none", classes=10):
    between = [nn.BatchNorm2d(4)] if norm == "batch" else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *between, nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
"""


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", plugins.names("training"))
def test_every_method_trains_and_resumes_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)

    def config(out: str) -> TrainConfig:
        settings = Settings(**{**SMALL, "train_samples": 64})
        return TrainConfig(
            method=name, out=tmp_path / out, settings=settings, arch=f"{tmp_path / 'nets.py'}:small"
        )

    def stop(progress: Any) -> None:
        if (progress.epoch, progress.step) == (2, 1):
            raise Stop

    whole = train(config("whole.pt"))
    with pytest.raises(Stop):
        train(config("broken.pt"), stop)
    assert train(config("broken.pt")).read_bytes() == whole.read_bytes()
    known = read_checkpoint(whole).metadata["train"]
    assert known["method"] == name
    assert all(math.isfinite(value) for value in known["curves"]["loss"])


def test_options_mean_the_same_everywhere() -> None:
    found: dict[str, Any] = {}
    plain = {item.name for item in (*fields(Settings), *dataclasses.fields(TrainConfig))}
    for name in plugins.names("training"):
        for item in fields(plugins.load("training", name).options):
            assert found.setdefault(item.name, item.type) == item.type, f"{name}.{item.name}"
            assert item.name not in plain, f"{name}.{item.name}"


def test_matching_the_accuracy_of_another_checkpoint(tmp_path: Path) -> None:
    target = train(
        slim(tmp_path / "target.pt", "weight-decay", {"lam": 0.05}, train_samples=600, curve_samples=0)
    )
    # far too strong a constant: the search has to come down
    config = slim(tmp_path / "a.pt", "weight-decay", {"lam": 8.0}, train_samples=600, curve_samples=0)
    too_strong = held_out_accuracy(read_checkpoint(train(config)), config)
    wanted = held_out_accuracy(read_checkpoint(target), config)
    assert too_strong < wanted - 0.2
    found = train(dataclasses.replace(config, out=tmp_path / "b.pt", match_accuracy=target))
    assert abs(held_out_accuracy(read_checkpoint(found), config) - wanted) < 0.1
    assert read_checkpoint(found).metadata["train"]["options"]["weight-decay"]["lam"] < 8
    assert {path.name for path in tmp_path.iterdir()} == {"target.pt", "a.pt", "b.pt"}
    with pytest.raises(UsageError, match="no constant"):
        train(dataclasses.replace(config, method="standard", options={}, match_accuracy=target))
