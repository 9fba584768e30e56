"""Choose a method's constant so that the clean accuracy is that of another checkpoint (roth2020 A.4)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdiag.errors import UsageError
from specdiag.loading.architectures import network_for
from specdiag.loading.checkpoints import Checkpoint, read_checkpoint
from specdiag.model import Model, Normalisation
from specdiag.training import _data
from specdiag.training._recipe import Recipe, parse
from specdiag.training._settings import TrainConfig

# the first of these that a part has is its constant; a larger bound means less regularisation
STRONGER_UP, STRONGER_DOWN = ("lam", "eps", "deviation", "rate"), ("beta", "bound")
ROUNDS, FACTOR = 6, 8.0

Train = Callable[[TrainConfig], Path]


def matched(config: TrainConfig, train: Train) -> TrainConfig:
    """The configuration with its constant set to where held-out clean accuracy comes closest to the checkpoint's.

    By bisection of the constant's logarithm from its given or default value: `ROUNDS` trainings beside the
    output, each of which is kept until the last one is done, so that an interrupted search goes on. Raises
    UsageError where the method has no constant.
    """
    if config.match_accuracy is None:
        return config
    recipe = parse(config.method, config.options)
    part, name = constant_of(recipe)
    start = getattr(recipe.parts[part], name)
    if start == "auto":
        raise UsageError(f"--match-accuracy needs a number to start from for {name}.", f"Pass --{name}.")
    reference = read_checkpoint(config.match_accuracy)
    target = held_out_accuracy(reference, config)
    up = name in STRONGER_UP
    weak, strong, value = 0.0, math.inf, float(start)
    tried: dict[float, float] = {}
    places = []
    for number in range(ROUNDS):
        places.append(config.out.with_name(f".{config.out.stem}.match{number}.pt"))
        trial = dataclasses.replace(
            config,
            match_accuracy=None,
            out=places[-1],
            options={**config.options, f"{part}.{name}": value},
        )
        tried[value] = held_out_accuracy(read_checkpoint(train(trial)), config)
        # as strength, so that more of it always costs accuracy
        strength = value if up else 1 / value
        if tried[value] > target:
            weak = max(weak, strength)
        else:
            strong = min(strong, strength)
        following = _between(weak, strong)
        value = following if up else 1 / following
    best = min(tried, key=lambda entry: (abs(tried[entry] - target), entry))
    for place in places:
        place.unlink(missing_ok=True)
    options = {**config.options, f"{part}.{name}": best}
    return dataclasses.replace(config, match_accuracy=None, options=options)


def constant_of(recipe: Recipe) -> tuple[str, str]:
    """(part, option) of the constant that decides how strongly the last part of a recipe acts."""
    for part, options in reversed(list(recipe.parts.items())):
        for name in (*STRONGER_UP, *STRONGER_DOWN):
            if hasattr(options, name):
                return part, name
    raise UsageError(
        f"'{recipe.name}' has no constant to match the accuracy with.", "Leave out --match-accuracy."
    )


def held_out_accuracy(checkpoint: Checkpoint, config: TrainConfig) -> float:
    """Clean accuracy on the samples that the run holds out."""
    known: Any = checkpoint.metadata
    if "architecture" not in known:
        raise UsageError(
            f"{checkpoint.path} does not say its architecture.", "Name a checkpoint of specdiag."
        )
    data = _data.load(config.data, config.settings)
    samples = data.validation if len(data.validation) else data.train
    network = network_for(checkpoint.tensors, known["architecture"], known["arch_args"])[0]
    kind = Normalisation(known["normalise"], tuple(known["mean"]), tuple(known["std"]))
    model = Model(network, data.input_shape, normalisation=kind)
    right = 0
    for begin in range(0, len(samples), 200):
        rows = slice(begin, begin + 200)
        right += int((model.logits(samples.x[rows]).argmax(1) == samples.y[rows]).sum())
    return right / len(samples)


def _between(weak: float, strong: float) -> float:
    if strong == math.inf:
        return weak * FACTOR
    return strong / FACTOR if weak == 0 else math.sqrt(weak * strong)
