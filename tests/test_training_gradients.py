"""Gradient penalties and structured gradient regularisation, in closed form and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from training_common import (
    batch_moments,
    convolutional,
    gradients,
    jacobians,
    linear,
    method,
    step_of,
    towards,
    with_batch_statistics,
)

from specdiag.training import _covariance


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
    moments = batch_moments(run, sgr, step, 3, torch.sign)
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
