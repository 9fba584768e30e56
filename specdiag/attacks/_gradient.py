"""The one loop of all gradient attacks: logit direction, one vector-Jacobian product, step, projection.

The power-method form of projected gradient ascent (roth2020 eq. 12): u_k = grad_z loss(z) at z = f(x_{k-1}),
formed in float64 and scaled to unit norm per sample; v_k = J(x_{k-1})^T u_k, pulled back in the network's
dtype; then a step. Parameter gradients are never computed. Samples that are done leave the batch, the rest is
repacked in multiples of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from specdiag.attacks._ball import Ball, Bound, Norm, norms, per_sample
from specdiag.attacks._losses import Loss, parse_loss
from specdiag.sampling import CHUNK_MULTIPLE

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Gradient:
    """One pull-back v = J^T u of a logit direction u.

    logits: (N, K) float64; direction: u, (N, K) float64 of unit norm; scale: the length (N,) that u had. v:
    (N, *input shape) in the network's dtype, not normalised; length: its norm (N,) float64; usable: (N,)
    where v is finite and not zero.
    """

    logits: torch.Tensor
    direction: torch.Tensor
    scale: torch.Tensor
    v: torch.Tensor
    length: torch.Tensor
    usable: torch.Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where an attack ended.

    x: (N, *input shape); dead: (N,) the gradient was zero or not finite at some step; steps: (N,) steps
    taken.
    """

    x: torch.Tensor
    dead: torch.Tensor
    steps: torch.Tensor


class Move(Protocol):
    """One step from `here` by a gradient, around `origin`.

    `rows` are the samples' places in the whole batch, None for all of them.
    """

    def __call__(
        self, here: torch.Tensor, origin: torch.Tensor, gradient: Gradient, rows: torch.Tensor | None
    ) -> torch.Tensor: ...


# called after each step with its number from 0, the points after it, and the gradient it followed
Observe = Callable[[int, torch.Tensor, Gradient], None]


def pull_back(
    forward: Forward,
    x: torch.Tensor,
    loss: Loss,
    labels: torch.Tensor | None,
    reference: torch.Tensor | None = None,
    targeted: bool = False,
) -> Gradient:
    """Where the loss rises fastest at x: one forward pass and one vector-Jacobian product."""
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        outputs = forward(leaf)
    logits = outputs.detach().double()
    direction, scale = loss.direction(logits, labels, reference, targeted)
    if outputs.requires_grad:
        (v,) = torch.autograd.grad(outputs, leaf, direction.to(outputs.dtype))
    else:
        v = torch.zeros_like(x)
    length = norms(v)
    usable = torch.isfinite(length) & (length > 0)
    return Gradient(logits, direction, scale, v, length, usable)


def climb(
    forward: Forward,
    x: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    loss: Loss,
    move: Move,
    steps: int,
    start: torch.Tensor | None = None,
    targeted: bool = False,
    stop: bool = False,
    observe: Observe | None = None,
) -> Outcome:
    """`steps` steps uphill from `start` (points, default x itself).

    x: (N, *input shape); labels: (N,) int64. With `stop` a sample ends as soon as the network's answer is
    wrong (for targeted attacks: is the target). A sample whose gradient is zero or not finite stays where it
    is. `observe` sees all samples at every step, so with it nothing is repacked.
    """
    with torch.no_grad():
        reference = forward(x).double() if loss.needs_reference else None
    points = x.clone() if start is None else start.clone()
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    dead, taken = done.clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows, count = None, len(x)
    for k in range(steps):
        here, origin = take(points, rows), take(x, rows)
        gradient = pull_back(forward, here, loss, _pick(labels, rows), _pick(reference, rows), targeted)
        ended = ~gradient.usable
        if stop:
            ended = ended | reached(gradient.logits, _pick(labels, rows), targeted)
        with torch.no_grad():
            moved = move(here, origin, gradient, rows)
        still = _pick(done, rows) | ended
        moved = torch.where(per_sample(still, moved).bool(), here, moved)
        if rows is None:
            points, done, dead = moved, still, dead | ~gradient.usable
            taken += ~still
        else:
            own = rows[:count]
            points[own], done[own] = moved[:count], still[:count]
            dead[own] |= ~gradient.usable[:count]
            taken[own] += ~still[:count]
        if observe is not None:
            observe(k, points, gradient)
            continue
        rows, count = repack(done, rows, len(here), count)
        if count == 0:
            break
    return Outcome(points, dead, taken)


def reached(logits: torch.Tensor, labels: torch.Tensor | None, targeted: bool = False) -> torch.Tensor:
    """Where the network's answer is another than the label or, targeted, is the label: (N,) bool."""
    if labels is None:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    answers = logits.argmax(1)
    return answers == labels if targeted else answers != labels


def projected(ball: Ball, alpha: float | torch.Tensor) -> Move:
    """Steps of length alpha along v / ||v||_2 (l2) or its signs (linf), then projection (roth2020 eq. 11).

    alpha: a number or (N,); infinite: exactly x + eps v / ||v|| (Lemma 1).
    """

    def move(
        here: torch.Tensor, origin: torch.Tensor, gradient: Gradient, rows: torch.Tensor | None
    ) -> torch.Tensor:
        infinite = isinstance(alpha, float) and alpha == float("inf")
        length: Any = ball.radius(here, rows) if infinite else alpha
        if isinstance(length, torch.Tensor) and not infinite:
            length = per_sample(length if rows is None else length[rows], here)
        if ball.norm == "linf":
            step = gradient.v.sign() * length
        else:
            step = gradient.v * (per_sample(1 / gradient.length, here) * length)
        return ball.put(origin, step if infinite else step.add_(here).sub_(origin), rows)

    return move


def ascend(
    forward: Forward,
    x: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    norm: Norm,
    eps: float | torch.Tensor,
    steps: int,
    alpha: float | None = None,
    loss: str = "cross-entropy",
    start: torch.Tensor | None = None,
    low: Bound = None,
    high: Bound = None,
    targeted: bool = False,
) -> torch.Tensor:
    """Projected gradient ascent on any differentiable `forward` (x -> logits); returns the perturbed x.

    start: offsets (N, *input shape) inside the ball at which to start, None for x itself. alpha: step length,
    default 2 eps / steps. low, high: range to stay in.
    """
    ball = Ball(norm, eps, low, high)
    begin = None if start is None else ball.put(x, start.clone())
    length = 2 * eps / steps if alpha is None else alpha
    chosen = parse_loss(loss)
    return climb(
        forward,
        x,
        labels,
        loss=chosen,
        move=projected(ball, length),
        steps=steps,
        start=begin,
        targeted=targeted,
    ).x


def take(x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The samples at `rows`, all for None."""
    return x if rows is None else x.index_select(0, rows)


def _pick(values: Any, rows: torch.Tensor | None) -> Any:
    return values if values is None or rows is None else values[rows]


def repack(
    done: torch.Tensor, rows: torch.Tensor | None, size: int, count: int
) -> tuple[torch.Tensor | None, int]:
    """Rows still to do, padded to a multiple of 8 by the last of them, when that makes the batch smaller."""
    left = (~done).nonzero()[:, 0]
    padded = -(-len(left) // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    if len(left) and padded >= size:
        return rows, count
    return torch.cat([left, left[-1:].expand(padded - len(left))]), len(left)
