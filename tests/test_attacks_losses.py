"""Logit gradients of the losses: printed formulas, limits, and saturated softmax (roth2020 A.3)."""

from __future__ import annotations

import math

import pytest
import torch
from attacks_common import cifar_batch, resnet20

from specdiag.attacks._gradient import pull_back
from specdiag.attacks._losses import Loss, parse_loss
from specdiag.errors import UsageError


def logits_and_labels(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    return z, torch.randint(5, (20,), generator=generator)


def autograd_of(
    loss: Loss, z: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor | None
) -> torch.Tensor:
    leaf = z.clone().requires_grad_(True)
    loss.value(leaf, labels, reference).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_equation_36_untargeted_cross_entropy() -> None:
    z, y = logits_and_labels()
    unit, length = Loss("cross-entropy").direction(z, y, None)
    expected = torch.softmax(z, 1) - torch.nn.functional.one_hot(y, 5)
    assert torch.allclose(unit * length[:, None], expected, atol=1e-15)
    assert torch.allclose(unit.norm(dim=1), torch.ones(20).double(), atol=1e-15)


def test_equation_37_targeted_cross_entropy() -> None:
    z, target = logits_and_labels()
    unit, length = Loss("cross-entropy").direction(z, target, None, targeted=True)
    expected = torch.nn.functional.one_hot(target, 5) - torch.softmax(z, 1)
    assert torch.allclose(unit * length[:, None], expected, atol=1e-15)


def test_low_temperature_flips_labels() -> None:
    """beta to infinity: from the answer to the target (A.3), from the label to the nearest other class."""
    z, labels = logits_and_labels()
    answers = z.argmax(1)
    away = labels != answers
    unit, _ = Loss("cross-entropy", 1e4).direction(z, labels, None, targeted=True)
    one_hot = torch.nn.functional.one_hot
    flip = (one_hot(labels, 5) - one_hot(answers, 5)).double() / math.sqrt(2)
    assert torch.allclose(unit[away], flip[away], atol=1e-12)
    unit, _ = Loss("cross-entropy", 1e4).direction(z, labels, None)
    others = z.scatter(1, labels[:, None], -math.inf).argmax(1)
    flip = (one_hot(others, 5) - one_hot(labels, 5)).double() / math.sqrt(2)
    assert torch.allclose(unit, flip, atol=1e-12)
    margin, _ = Loss("margin").direction(z, labels, None)
    assert torch.allclose(margin, flip, atol=1e-15)


@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "temperature=3", "sum-of-squares"])
def test_direction_is_the_gradient_of_the_value(loss: str) -> None:
    z, y = logits_and_labels()
    reference = logits_and_labels(0.3)[0]
    chosen = parse_loss(loss)
    unit, length = chosen.direction(z, y, reference)
    assert torch.allclose(unit * length[:, None], autograd_of(chosen, z, y, reference), atol=1e-13)


def test_sum_of_squares_has_no_direction_at_the_reference() -> None:
    z, _ = logits_and_labels()
    unit, length = Loss("sum-of-squares").direction(z, None, z)
    assert not unit.any()
    assert not length.any()


def test_saturated_softmax_keeps_its_direction() -> None:
    """At a lead of 2,000 logits softmax itself is zero to every bit; the direction is still that of the others."""
    z = torch.tensor([[2000.0, 0.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([0])
    unit, length = Loss("cross-entropy").direction(z, y, None)
    rest = torch.tensor([[-1 - math.exp(-1), 1.0, math.exp(-1)]], dtype=torch.float64)
    assert torch.allclose(unit, rest / rest.norm(), atol=1e-15)
    assert float(length) == 0.0
    assert float(Loss("cross-entropy").value(z - 1000, y)) >= 0


@pytest.mark.parametrize(
    "text", ["crossentropy", "temperature", "temperature=0", "temperature=inf", "temperature=x"]
)
def test_unknown_losses_are_explained(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_loss(text)
    assert error.value.todo


def test_one_output_has_no_other_class() -> None:
    with pytest.raises(UsageError, match="one output"):
        Loss("cross-entropy").direction(torch.zeros(2, 1).double(), torch.zeros(2).long(), None)


def test_float32_directions_of_confident_images(assets) -> None:
    """cosine to the float64 network above 0.999 for 98 % of images, where plain softmax minus one-hot fails."""
    single, double = resnet20(assets), resnet20(assets, torch.float64)
    small, large = cifar_batch(assets, single, 64), cifar_batch(assets, double, 64)
    loss = Loss("cross-entropy")
    a = pull_back(single.forward, small.x, loss, small.y).v.double().flatten(1)
    b = pull_back(double.forward, large.x, loss, large.y).v.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    assert float((cosine > 0.999).double().mean()) >= 0.98
    leaf = small.x.clone().requires_grad_(True)
    z = single.forward(leaf)
    plain = (torch.softmax(z, 1) - torch.nn.functional.one_hot(small.y, 10)).detach()
    (g,) = torch.autograd.grad(z, leaf, plain)
    naive = torch.nn.functional.cosine_similarity(g.double().flatten(1), b)
    assert float((naive > 0.999).double().mean()) < 0.9
