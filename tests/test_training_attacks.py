"""Perturbations of attack training against closed forms."""

from __future__ import annotations

import pytest
import torch
from training_common import (
    convolutional,
    linear,
    method,
    step_of,
    towards,
)


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
