"""From an attack's options and a batch to the loop: labels, radius, start, range, check of the result."""

from __future__ import annotations

import math
from typing import Any

import torch

from specdiag.attacks._ball import Ball, Norm, data_range, like
from specdiag.attacks._gradient import Observe, Outcome, climb, projected
from specdiag.attacks._losses import Loss, parse_loss
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.sampling import Batch


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


def one_step(attack: Any, name: str, norm: Norm, model: Model, batch: Batch) -> Outcome:
    """The whole eps along the gradient at the clean point."""
    eps = radius(attack.eps, name, batch)
    low, high = data_range(model, batch, attack.clip)
    ball = Ball(norm, eps, low, high)
    loss = parse_loss(attack.loss)
    if loss.needs_reference:
        raise UsageError(
            "--loss sum-of-squares has no gradient at the clean point, where one-step attacks take theirs.",
            "Use --attack pgd-l2 or another --loss.",
        )
    labels, targeted = aim(attack, loss, model, batch)
    move = projected(ball, math.inf)
    found = climb(model.forward, batch.x, labels, loss=loss, move=move, steps=1, targeted=targeted)
    ball.check(found.x, batch.x)
    return found


def random_point(attack: Any, name: str, norm: Norm, model: Model, batch: Batch) -> torch.Tensor:
    """X plus a random offset of norm eps (l2), or uniform in the cube of half width eps (linf)."""
    ball = Ball(norm, radius(attack.eps, name, batch), *data_range(model, batch, attack.clip))
    x = ball.put(batch.x, ball.random(batch, name, surface=norm == "l2"))
    ball.check(x, batch.x)
    return x


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
