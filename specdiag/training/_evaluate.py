"""Accuracies: curves while a network trains, and the final ones of the checkpoint, clean and attacked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specdiag.attacks._ball import Norm
from specdiag.loading.datasets import Data
from specdiag.model import Model, Normalisation
from specdiag.options import build_attack
from specdiag.sampling import Batch, Draws
from specdiag.schema import AttackSpec
from specdiag.training._attack import perturb
from specdiag.training._context import Run, Step
from specdiag.training._data import Samples, TrainingData

CHUNK = 200

Measure = Callable[[Run], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Attacker:
    """The attack of curves and final accuracies: projected gradient ascent, alpha = 2 eps / steps.

    Perturbed samples stay in the range of the data, as in `robustness`.
    """

    norm: Norm
    eps: float
    steps: int
    clip: bool = True

    @property
    def name(self) -> str:
        """Name of the attack's plugin."""
        return f"pgd-{self.norm}"

    def values(self) -> dict[str, Any]:
        """Options for the plugin."""
        return {"eps": self.eps, "steps": self.steps, "alpha": 2 * self.eps / self.steps, "clip": self.clip}


def curves_on(data: TrainingData, attacker: Attacker, count: int) -> Measure:
    """Accuracy on `count` training and `count` held-out samples, clean and attacked, after an epoch."""

    def measure(run: Run) -> dict[str, float]:
        found = {}
        for name, samples in (("train", data.train), ("validation", data.validation)):
            chosen = samples.first(count)
            if len(chosen):
                clean, attacked = _accuracy(run, chosen, attacker)
                found[f"{name}_accuracy"], found[f"{name}_attacked_accuracy"] = clean, attacked
        return found

    return measure


def _accuracy(run: Run, samples: Samples, attacker: Attacker) -> tuple[float, float]:
    right = [0, 0]
    for begin in range(0, len(samples), CHUNK):
        rows = slice(begin, begin + CHUNK)
        x, y = samples.x[rows].to(run.device), samples.y[rows].to(run.device)
        step = Step(run, x, y, samples.index[rows], 0, 0)
        perturbed = perturb(step, attacker.name, attacker.values(), "curves")
        with torch.no_grad(), run.evaluating() as forward:
            for k, points in enumerate((x, perturbed)):
                right[k] += int((forward(points).argmax(1) == y).sum())
    return right[0] / len(samples), right[1] / len(samples)


def final_model(run: Run, normalisation: Normalisation, dtype: torch.dtype = torch.float64) -> Model:
    """The trained network as the analyzers see it, in float64: another processor then finds the same answers."""
    network = copy.deepcopy(run.network)
    return Model(network, run.input_shape, normalisation=normalisation, device=str(run.device), dtype=dtype)


def accuracies(model: Model, data: Data, attacker: Attacker, seed: int) -> tuple[float, float]:
    """Share of samples that are classified right, clean and under the attack's plugin.

    model: in the dtype to evaluate in; data: the test samples, with labels; seed: of the attack's draws.
    """
    attack = build_attack(AttackSpec(attacker.name, attacker.values()))
    y = torch.as_tensor(data.y).to(model.device)
    facts = {"low": data.low, "high": data.high}
    clean = attacked = 0
    for begin in range(0, len(data), CHUNK):
        rows = slice(begin, begin + CHUNK)
        x = model.to_input(data.x[rows])
        batch = Batch(x, y[rows], data.index[rows], data.split, Draws(seed), facts)
        clean += int((model.logits(x).argmax(1) == y[rows]).sum())
        attacked += int((model.logits(attack.perturb(model, batch)).argmax(1) == y[rows]).sum())
    return clean / len(data), attacked / len(data)
