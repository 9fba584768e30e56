"""Gradient ascent on loss - (penalty / 2) ||delta||_2^2 with backtracking, for attacks without a ball."""

from __future__ import annotations

from typing import Any

import torch

from specdiag.attacks._ball import Ball, data_range, norms, per_sample
from specdiag.attacks._gradient import Gradient, Outcome, climb
from specdiag.attacks._losses import Loss, parse_loss
from specdiag.attacks._run import aim
from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.sampling import Batch

# farnia2019 section 5: share of the mean ||x||_2, for images with one channel and with more
GREY, COLOUR = 0.04, 0.002


def default_penalty(input_shape: tuple[int, ...], mean_norm: float) -> float:
    """0.04 E||x||_2 for images with one channel, 0.002 E||x||_2 otherwise."""
    grey = len(input_shape) != 3 or input_shape[0] == 1
    return (GREY if grey else COLOUR) * mean_norm


def wrm(attack: Any, model: Model, batch: Batch) -> Outcome:
    """The attack by its options (penalty, steps, loss, target, label, clip)."""
    penalty = attack.penalty
    if penalty is None:
        penalty = default_penalty(model.input_shape, batch.facts["mean_norm"])
    loss = parse_loss(attack.loss)
    if loss.needs_reference:
        raise UsageError(
            "--loss sum-of-squares has no gradient at the clean point, where this attack starts.",
            "Use another --loss.",
        )
    labels, targeted = aim(attack, loss, model, batch)
    sign = -1.0 if targeted else 1.0
    low, high = data_range(model, batch, attack.clip)
    cutter = Ball("l2", 0.0, low, high)
    search = _Search(loss, labels, sign, penalty, batch.x, cutter)
    found = climb(
        model.forward, batch.x, labels, loss=loss, move=search, steps=attack.steps, targeted=targeted
    )
    return Outcome(search.finish(model.logits(found.x).double(), found.x), found.dead, found.steps)


class _Search:
    """Steps of 1 / penalty at first, halved for a sample whenever the objective did not rise."""

    def __init__(
        self, loss: Loss, labels: torch.Tensor, sign: float, penalty: float, x: torch.Tensor, cutter: Ball
    ) -> None:
        self.loss, self.labels, self.sign, self.penalty, self.cutter = loss, labels, sign, penalty, cutter
        self.origin = x
        self.best, self.uphill = x.clone(), torch.zeros_like(x)
        self.value = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        self.length = torch.full_like(self.value, 1 / penalty)

    def __call__(
        self, here: torch.Tensor, origin: torch.Tensor, gradient: Gradient, rows: torch.Tensor | None
    ) -> torch.Tensor:
        pick: Any = slice(None) if rows is None else rows
        value = self._objective(gradient.logits, here, pick)
        rose = value > self.value[pick]
        # targeted directions already point uphill
        uphill = gradient.v * per_sample(gradient.scale, here) - self.penalty * (here - origin)
        self.best[pick] = torch.where(_wide(rose, here), here, self.best[pick])
        self.uphill[pick] = torch.where(_wide(rose, here), uphill, self.uphill[pick])
        self.value[pick] = torch.where(rose, value, self.value[pick])
        self.length[pick] = torch.where(rose, self.length[pick], self.length[pick] / 2)
        step = self.uphill[pick] * per_sample(self.length[pick], here)
        return self.cutter.cut(self.best[pick] + step)

    def finish(self, logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The better of the last point and the best before it."""
        rose = self._objective(logits, last, slice(None)) > self.value
        return torch.where(_wide(rose, last), last, self.best)

    def _objective(self, logits: torch.Tensor, x: torch.Tensor, pick: Any) -> torch.Tensor:
        value = self.sign * self.loss.value(logits, self.labels[pick])
        return value - self.penalty / 2 * norms(x - self.origin[pick]).square()


def _wide(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return mask.reshape(-1, *([1] * (like.ndim - 1)))
