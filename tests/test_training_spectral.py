"""Penalties on spectral norms against dense matrices, and Theorem 1 of roth2020."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from training_common import (
    convolutional,
    dense,
    gradients,
    jacobians,
    linear,
    method,
    step_of,
)

from specdiag.attacks._ball import Ball
from specdiag.sampling import Draws
from specdiag.training._context import Step, torch_seed
from specdiag.training._recipe import parse


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
