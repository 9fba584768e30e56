"""The attack inside training: projected gradient ascent on the network as it is, BatchNorm in eval mode."""

from __future__ import annotations

from typing import Literal

import torch

from specdiag.attacks._ball import Ball, Norm
from specdiag.attacks._gradient import ascend
from specdiag.training._context import Run, Step

DEFAULT_L2 = 0.05
DEFAULT_LINF = 0.005


def radius(run: Run, eps: float | Literal["auto"], norm: Norm) -> float:
    """The eps given; auto is 0.05 mean ||x||_2 (farnia2019 section 5), for linf 0.005 (simongabriel2019 4)."""
    if eps != "auto":
        return eps
    return DEFAULT_L2 * run.mean_norm if norm == "l2" else DEFAULT_LINF


def pgd(
    step: Step,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    alpha: float,
    loss: str = "cross-entropy",
    random_start: bool = True,
    clip: bool = False,
    purpose: str = "attack",
) -> torch.Tensor:
    """Perturbed x (N, *input shape), without a graph (roth2020 eq. 11).

    The random start is keyed by sample, epoch and `purpose`.
    """
    start = Ball(norm, eps).random(step.as_batch(), step.purpose(purpose)) if random_start else None
    low, high = (step.run.low, step.run.high) if clip else (None, None)
    with step.run.evaluating(parameters=False) as forward:
        return ascend(
            forward,
            step.x,
            step.y,
            norm=norm,
            eps=eps,
            steps=steps,
            alpha=alpha,
            loss=loss,
            start=start,
            low=low,
            high=high,
        )
