"""Attacks inside training: the attacks' plugins, run on the network as it is, BatchNorm in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from specdiag.attacks._ball import Norm
from specdiag.options import build_attack
from specdiag.sampling import Batch, Draws
from specdiag.schema import AttackSpec
from specdiag.training._context import Run, Step, torch_seed

DEFAULT_L2 = 0.05
DEFAULT_LINF = 0.005


def radius(run: Run, eps: float | Literal["auto"], norm: Norm) -> float:
    """The eps given; auto is 0.05 mean ||x||_2 (farnia2019 section 5), for linf 0.005 (simongabriel2019 4)."""
    if eps != "auto":
        return eps
    return DEFAULT_L2 * run.mean_norm if norm == "l2" else DEFAULT_LINF


@dataclass(frozen=True, slots=True)
class InTraining:
    """The network in training, as far as attacks need it to be a model; inputs are in data space."""

    run: Run
    forward: Callable[[torch.Tensor], torch.Tensor]
    space: Literal["data"] = "data"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.run.input_shape

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return self.run.classes

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) without a graph."""
        with torch.no_grad():
            return self.forward(x)


def perturb(step: Step, name: str, values: Mapping[str, Any], purpose: str = "attack") -> torch.Tensor:
    """The batch perturbed by a plugin, (N, *input shape), without a graph.

    Draws are keyed by seed, epoch, `purpose` and sample.
    """
    run = step.run
    attack = build_attack(AttackSpec(name, values))
    facts = {"mean_norm": run.mean_norm, "low": run.low, "high": run.high}
    draws = Draws(torch_seed(run.settings.seed, step.purpose(purpose)))
    batch = Batch(step.x, step.y, step.index, "train", draws, facts)
    with run.evaluating(parameters=False) as forward:
        perturbed: torch.Tensor = attack.perturb(InTraining(run, forward), batch)
    return perturbed.detach()
