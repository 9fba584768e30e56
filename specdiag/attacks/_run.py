"""From an attack's options and a batch to the loop: labels, radius, start, range, check of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from specdiag.attacks._ball import Ball, Norm, data_range, like, per_sample
from specdiag.attacks._gradient import Observe, Outcome, climb, projected, pull_back
from specdiag.attacks._losses import Loss, parse_loss
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Ray:
    """An attack whose points lie on one line from x for every eps.

    unit: (N, *input shape) offset of size 1 in the attack's norm, 0 where dead; dead: (N,) its gradient was zero or
    not finite; two_sided: of +eps and -eps the one with the larger loss is taken.
    """

    unit: torch.Tensor
    dead: torch.Tensor
    two_sided: bool = False


def pgd(
    attack: Any,
    name: str,
    norm: Norm,
    model: Model,
    batch: Batch,
    stop: bool = False,
    observe: Observe | None = None,
) -> Outcome:
    """Projected gradient ascent by the options of `attack`; the result is checked against ball and range."""
    eps = radius(attack.eps, name, batch)
    low, high = data_range(model, batch, attack.clip)
    ball = Ball(norm, eps, low, high)
    loss = parse_loss(attack.loss)
    labels, targeted = aim(attack, loss, model, batch)
    start = None
    if attack.start == "random":
        start = like(ball.put(batch.x, ball.random(batch, f"{name}/start")), batch.x)
    elif loss.needs_reference:
        raise UsageError("--loss sum-of-squares has no gradient at the clean point.", "Use --start random.")
    alpha = 2 * eps / attack.steps if attack.alpha is None else attack.alpha
    found = climb(
        model.forward,
        batch.x,
        labels,
        loss=loss,
        move=projected(ball, alpha),
        steps=attack.steps,
        start=start,
        targeted=targeted,
        stop=stop,
        observe=observe,
    )
    ball.check(found.x, batch.x)
    return found


def one_step_ray(attack: Any, norm: Norm, model: Model, batch: Batch) -> Ray:
    """The gradient at the clean point as an offset of size 1."""
    loss = parse_loss(attack.loss)
    if loss.needs_reference:
        raise UsageError(
            "--loss sum-of-squares has no gradient at the clean point, where one-step attacks take theirs.",
            "Use --attack pgd-l2 or another --loss.",
        )
    labels, targeted = aim(attack, loss, model, batch)
    gradient = pull_back(model.forward, batch.x, loss, labels, targeted=targeted)
    unit = gradient.v.sign() if norm == "linf" else gradient.v / per_sample(gradient.length, gradient.v)
    sound = per_sample(gradient.usable, unit).bool()
    return Ray(torch.where(sound, unit, 0.0), ~gradient.usable)


def random_ray(name: str, norm: Norm, batch: Batch) -> Ray:
    """A random offset: on the unit sphere (l2), or uniform in the cube of half width 1 (linf)."""
    unit = Ball(norm, 1.0).random(batch, name, surface=norm == "l2")
    return Ray(unit, torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device))


def along(attack: Any, name: str, norm: Norm, ray: Ray, model: Model, batch: Batch) -> Outcome:
    """The point at distance eps of the attack's options along its ray, cut to the range and checked."""
    ball = Ball(norm, radius(attack.eps, name, batch), *data_range(model, batch, attack.clip))
    size = ball.radius(batch.x)
    x = ball.put(batch.x, ray.unit * size)
    if ray.two_sided:
        x = _better_side(attack, model, batch, x, ball.put(batch.x, ray.unit * -size))
    ball.check(x, batch.x)
    return Outcome(x, ray.dead, (~ray.dead).long())


def _better_side(
    attack: Any, model: Model, batch: Batch, ahead: torch.Tensor, behind: torch.Tensor
) -> torch.Tensor:
    """Of two points the one with the larger loss (targeted: the smaller one)."""
    loss = parse_loss(attack.loss)
    labels, targeted = aim(attack, loss, model, batch)
    clean = model.logits(batch.x).double()
    first, second = (loss.value(model.logits(x).double(), labels, clean) for x in (ahead, behind))
    better = first <= second if targeted else first >= second
    return torch.where(per_sample(better, ahead).bool(), ahead, behind)


def radius(eps: Any, name: str, batch: Batch) -> float | torch.Tensor:
    """Eps as a number, or (N,) radii where an analyzer set one per sample; UsageError if not yet known."""
    if isinstance(eps, torch.Tensor):
        return eps.to(batch.x.device)
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise UsageError(f"Attack '{name}' has no eps.", "Give one with --eps.")
    return float(eps)


def aim(attack: Any, loss: Loss, model: Model, batch: Batch) -> tuple[torch.Tensor, bool]:
    """The labels to leave, or the targets to reach with True."""
    target = getattr(attack, "target", None)
    if target is None:
        return labels_of(attack.label, model, batch), False
    if loss.needs_reference:
        raise UsageError("--loss sum-of-squares has no target.", "Leave out --target or use another --loss.")
    if isinstance(target, int):
        if target >= model.outputs:
            raise UsageError(f"--target {target}: the classes are 0 to {model.outputs - 1}.")
        return torch.full((len(batch),), target, dtype=torch.int64, device=batch.x.device), True
    if target == "least-likely":
        return model.logits(batch.x).argmin(1), True
    # another class than the label, each as likely
    labels = labels_of(attack.label, model, batch)
    drawn = torch.from_numpy(batch.draws.uniform("attack/target", batch.index, ())).to(batch.x.device)
    return (labels + 1 + (drawn * (model.outputs - 1)).long()) % model.outputs, True


def labels_of(which: str, model: Model, batch: Batch) -> torch.Tensor:
    """True labels, or the network's answers where asked for or where the data have none."""
    if which == "true" and batch.y is not None:
        return batch.y
    return model.logits(batch.x).argmax(1)
