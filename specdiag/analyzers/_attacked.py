"""Attacks as analyzers use them: run by name, with what became of every sample."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from specdiag.attacks._ball import Ball, norms
from specdiag.attacks._gradient import Observe, Outcome
from specdiag.errors import ModelError, UsageError
from specdiag.model import Model
from specdiag.options import build_attack
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec


@dataclass(frozen=True, slots=True)
class Attacked:
    """x: (N, *input shape) perturbed; offset: (N, D) float64, x minus the clean points; norm: (N,) its l2 length.

    usable: (N,) the perturbation is finite, not zero, and no gradient on its way was zero or not finite; dead: (N,)
    one was.
    """

    x: torch.Tensor
    offset: torch.Tensor
    norm: torch.Tensor
    usable: torch.Tensor
    dead: torch.Tensor


def attack_of(
    spec: AttackSpec, *, clip: bool | None = None, eps: Any = None, label: str | None = None
) -> Any:
    """The attack ready to run, with clip, eps (a number or one per sample) and label of the analyzer's choice."""
    attack = build_attack(spec)
    known = {item.name for item in dataclasses.fields(attack)}
    changed = {"clip": clip, "eps": eps, "label": label}
    return dataclasses.replace(attack, **{k: v for k, v in changed.items() if v is not None and k in known})


def attacked(
    attack: Any, model: Model, batch: Batch, *, stop: bool = False, observe: Observe | None = None
) -> Attacked:
    """Run an attack (`attack_of`) on a batch.

    `stop` and `observe` reach attacks that go step by step; UsageError where `observe` is given and this one does not.
    """
    if observe is not None and not iterates(attack):
        raise UsageError(
            f"{type(attack).__name__} takes no steps that could be followed.",
            "Use --attack pgd-l2 or pgd-linf.",
        )
    if hasattr(attack, "run"):
        return details(attack.run(model, batch, stop=stop, observe=observe), batch)
    none = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    return details(Outcome(attack.perturb(model, batch), none, none.long()), batch)


def details(found: Outcome, batch: Batch) -> Attacked:
    """What became of every sample of a batch."""
    offset = (found.x.double() - batch.x.double()).flatten(1)
    norm = torch.linalg.vector_norm(offset, dim=1)
    return Attacked(found.x, offset, norm, ~found.dead & torch.isfinite(norm) & (norm > 0), found.dead)


def iterates(attack: Any) -> bool:
    """Whether the attack climbs step by step from a start that its options choose."""
    return hasattr(attack, "run") and hasattr(attack, "start")


def random_directions(batch: Batch, purpose: str) -> torch.Tensor:
    """One uniformly random unit vector per sample, (N, *input shape), in the batch's dtype."""
    return Ball("l2", 1.0).random(batch, purpose, surface=True)


def expected_cosine(inputs: int) -> float:
    """E|cos| between a fixed and a uniformly random direction in `inputs` dimensions."""
    return math.exp(math.lgamma(inputs / 2) - math.lgamma((inputs + 1) / 2)) / math.sqrt(math.pi)


@lru_cache(maxsize=1)
def twin_of(model: Model, seed: int) -> Model | None:
    """The same architecture with random weights; None where it cannot be rebuilt."""
    try:
        return model.random_twin(seed)
    except ModelError:
        return None


@lru_cache(maxsize=1)
def in_double(model: Model) -> Model:
    """The same network in float64; itself where it is already."""
    if model.dtype == torch.float64:
        return model
    return Model(
        copy.deepcopy(model.network),
        model.input_shape,
        normalisation=model.normalisation,
        info=model.info,
        device=str(model.device),
        dtype=torch.float64,
        space=model.space,
        factory=model.factory,
    )


def outside_share(x: torch.Tensor, batch: Batch, model: Model) -> torch.Tensor:
    """Share of each perturbed input's values outside the range of the data, (N,); 0 where there is no range."""
    if model.space == "model" or "low" not in batch.facts:
        return torch.zeros(len(x), device=x.device)
    outside = (x < batch.facts["low"]) | (x > batch.facts["high"])
    return outside.flatten(1).double().mean(1)


def lengths(x: torch.Tensor) -> torch.Tensor:
    """||x||_2 of each sample, (N,) float64."""
    return norms(x)
