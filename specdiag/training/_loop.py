"""The one training loop: batches, the methods' hooks, the optimiser, curves, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from specdiag.errors import NumericalError
from specdiag.training import _state
from specdiag.training._context import Run, State, Step, torch_seed
from specdiag.training._data import TrainingData, augmentation, batches, steps_per_epoch
from specdiag.training._evaluate import Measure
from specdiag.training._recipe import Recipe
from specdiag.training._settings import Settings
from specdiag.training._state import Curves, Saved


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: `step` of `steps` in `epoch` of `epochs` (from 1).

    loss: of the last batch; seconds: spent on the steps of this epoch; curves: last values of all curves,
    only on the call that ends an epoch.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float
    curves: Mapping[str, float] | None = None


Report = Callable[[Progress], None]


def fit(
    run: Run,
    recipe: Recipe,
    data: TrainingData,
    measure: Measure,
    *,
    state_path: Path,
    key: str,
    report: Report | None = None,
) -> Curves:
    """Train `run.network` in place and return the curves, one value per epoch.

    Goes on from `state_path` where that file holds the state of the same run (`key`). Raises NumericalError
    where the loss is no longer finite.
    """
    settings = run.settings
    optimiser = _optimiser(run, settings)
    states, curves, done = recipe.initial_states(run), Curves(), 0
    saved = _state.load(state_path, key, run.device)
    if saved is not None:
        run.network.load_state_dict(saved.network)
        optimiser.load_state_dict(saved.optimiser)
        states, curves, done = saved.states, saved.curves, saved.epoch
    steps = steps_per_epoch(len(data.train), settings.batch_size)
    kind = augmentation(settings, data.input_shape)
    run.network.train()
    for epoch in range(done, settings.epochs):
        begun, total = time.perf_counter(), 0.0
        for k, batch in enumerate(batches(data.train, settings.batch_size, epoch, run.draws, kind)):
            number = epoch * steps + k
            # dropout draws from torch's generator: keyed by the step, a resumed run draws the same
            torch.manual_seed(torch_seed(settings.seed, f"train/step/{number}"))
            _set_rate(optimiser, rate(settings, number, steps))
            step = Step(
                run,
                batch.x.to(run.device),
                batch.y.to(run.device),
                batch.index,
                epoch,
                number,
                k == steps - 1,
            )
            loss = _one_step(step, recipe, states, optimiser)
            if not math.isfinite(loss):
                raise NumericalError(
                    f"The loss is no longer finite in epoch {epoch + 1}, step {k + 1}.", "Lower --lr."
                )
            total += loss
            if report is not None:
                seconds = time.perf_counter() - begun
                report(Progress(epoch + 1, settings.epochs, k + 1, steps, loss, seconds))
        seconds = time.perf_counter() - begun
        values = {
            "loss": total / steps,
            "lr": rate(settings, epoch * steps + steps - 1, steps),
            **measure(run),
        }
        for name, value in values.items():
            curves.setdefault(name, []).append(value)
        _state.save(state_path, _snapshot(run, optimiser, states, curves, key, epoch + 1))
        if report is not None:
            report(Progress(epoch + 1, settings.epochs, steps, steps, loss, seconds, values))
    recipe.last_weight_step(run, states)
    return curves


def rate(settings: Settings, number: int, steps: int) -> float:
    """Learning rate of step `number`, with `steps` steps per epoch."""
    total, warm = settings.epochs * steps, settings.warmup * steps
    rise = min(1.0, (number + 1) / warm) if warm > 0 else 1.0
    share = number / total
    fall = 1.0
    if settings.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * share))
    elif settings.schedule == "step":
        fall = 0.1 ** ((share >= 0.5) + (share >= 0.75))
    return settings.lr * rise * fall


def _one_step(
    step: Step, recipe: Recipe, states: Mapping[str, State], optimiser: torch.optim.Optimizer
) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss = recipe.loss(step, states)
    torch.autograd.backward(loss)
    optimiser.step()
    with torch.no_grad():
        recipe.weight_step(step, states)
    return float(loss.detach())


def _optimiser(run: Run, settings: Settings) -> torch.optim.Optimizer:
    parameters = list(run.network.parameters())
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = value


def _snapshot(
    run: Run,
    optimiser: torch.optim.Optimizer,
    states: dict[str, State],
    curves: Curves,
    key: str,
    epoch: int,
) -> Saved:
    return Saved(key, epoch, dict(run.network.state_dict()), optimiser.state_dict(), states, curves)
