"""Everything a training run is made from: the options of the loop, and the whole configuration. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from specdiag.schema import as_json, option


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of the loop, the same for every method."""

    epochs: int = option(30, "Passes over the training data.", min=0)
    batch_size: int = option(64, "Samples per step.", min=2)
    optimiser: Literal["sgd", "adam"] = option("sgd", "SGD with Nesterov momentum, or Adam.")
    lr: float = option(0.05, "Learning rate after the warm-up.", above=0)
    momentum: float = option(0.9, "Momentum of SGD.", min=0, max=1)
    weight_decay: float = option(5e-4, "Weight decay.", min=0)
    schedule: Literal["cosine", "step", "constant"] = option(
        "cosine", "Learning rate: half a cosine, a tenth at 1/2 and at 3/4 of the run, or constant."
    )
    warmup: float = option(1.0, "Epochs over which the learning rate rises from zero.", min=0)
    augment: Literal["auto", "none", "crop", "crop-flip"] = option(
        "auto", "Zero-padded random crops and flips; auto: crop-flip for colour images, else none."
    )
    labels: Literal["true", "random"] = option(
        "true", "Labels of the data, or random ones keyed by the seed."
    )
    train_samples: int | None = option(None, "Training samples to take; left out: all.", min=2)
    validation: int | Literal["auto"] = option(
        "auto", "Training samples held out for the curves; auto: a tenth, at most 1,000.", min=0
    )
    attack_eps: float | Literal["auto"] = option(
        "auto", "eps of the attack in curves and final accuracy; auto: that of the training.", above=0
    )
    attack_steps: int = option(10, "Iterations of the attack in curves and final accuracy.", min=1)
    curve_samples: int = option(200, "Validation samples attacked after each epoch; 0: none.", min=0)
    test_samples: int = option(2000, "Test samples for the final accuracies.", min=1)
    seed: int = option(0, "Seed of weights, order, augmentation, attacks and held-out samples.", min=0)
    device: str = option("auto", "Where to train: auto, cpu, cuda.")
    threads: int = option(1, "Threads; one keeps the bytes equal.", min=1)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    method: name or sum of names; options: values of the methods' own options, by name, or `METHOD.name` for
    one method of a sum. arch None: cnn4 for small grey images, cnn7 for 32x32 and larger, mlp for features;
    arch_args left out (channels, size, classes) follow from the data. normalise None: `channel` with mean
    and std of the training data for grey images and features, `per-image` for colour images (roth2020 A.4).
    init: checkpoint to start from, which then gives architecture and normalisation. match_accuracy: a
    checkpoint whose clean accuracy the run is to have, by its constant (see `_match`). out: the checkpoint to
    write; overwrite: replace it, and start anew where an unfinished run has left its state.
    """

    method: str = "standard"
    out: Path = Path("model.pt")
    data: str = "digits"
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    normalise: Literal["channel", "per-image", "none"] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    init: Path | None = None
    match_accuracy: Path | None = None
    overwrite: bool = False

    @property
    def state_path(self) -> Path:
        """Where an unfinished run keeps its state."""
        return self.out.with_name(f".{self.out.name}.state")


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides the weights."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def settings_json(settings: Settings) -> dict[str, Any]:
    """The settings as a checkpoint keeps them."""
    return {item.name: as_json(getattr(settings, item.name)) for item in dataclasses.fields(settings)}
