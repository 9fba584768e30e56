"""Samples for training: the training split, what is held out of it, labels, order and augmentation.

Every random number is keyed by the seed and the epoch, so that a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from specdiag.errors import DataError
from specdiag.loading.datasets import load_data
from specdiag.loading.labels import random_labels
from specdiag.sampling import Draws
from specdiag.training._context import Indices
from specdiag.training._settings import Settings

Augment = Literal["none", "crop", "crop-flip"]
MOST_VALIDATION = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """x (N, ...) float32 in data space, y (N,) int64, index (N,) in the training split."""

    x: torch.Tensor
    y: torch.Tensor
    index: Indices

    def __len__(self) -> int:
        return len(self.x)

    def first(self, count: int) -> Samples:
        """The first `count` samples."""
        return Samples(self.x[:count], self.y[:count], self.index[:count])


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Training and held-out samples of one data set.

    sha256: of the samples taken; low, high: range of the data; mean_norm: mean ||x||_2 of the training
    samples.
    """

    train: Samples
    validation: Samples
    classes: int
    low: float
    high: float
    mean_norm: float
    sha256: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])


def load(spec: str, settings: Settings, input_shape: tuple[int, ...] | None = None) -> TrainingData:
    """The training split of a data set; raises DataError where it has no labels or too few samples."""
    data = load_data(
        spec, split="train", samples=settings.train_samples, seed=settings.seed, input_shape=input_shape
    )
    if data.y is None:
        raise DataError(f"{spec} has no labels, and training needs them.", "Name a data set with labels.")
    draws = Draws(settings.seed)
    classes = data.classes or int(data.y.max()) + 1
    held = settings.validation
    count = min(len(data) // 10, MOST_VALIDATION) if held == "auto" else held
    if len(data) - count < 2:
        raise DataError(
            f"{spec} has {len(data):,} training samples, too few to hold out {count:,}.",
            "Lower --validation.",
        )
    order = draws.generator("train/validation").permutation(len(data))
    kept, out = np.sort(order[count:]), np.sort(order[:count])
    y = data.y
    train_y = random_labels(data.index, classes, draws) if settings.labels == "random" else y
    x, index = torch.from_numpy(data.x), data.index
    train = Samples(x[kept], torch.from_numpy(train_y[kept]), index[kept])
    validation = Samples(x[out], torch.from_numpy(y[out]), index[out])
    norms = torch.linalg.vector_norm(train.x.flatten(1), dim=1, dtype=torch.float64)
    mean_norm = float(norms.mean())
    return TrainingData(train, validation, classes, data.low, data.high, mean_norm, data.sha256)


def batches(samples: Samples, size: int, epoch: int, draws: Draws, augment: Augment) -> Iterator[Samples]:
    """The batches of one epoch, shuffled, all of full size: what is left over differs from epoch to epoch."""
    generator = draws.generator(f"train/order/{epoch}")
    order = generator.permutation(len(samples))
    for k in range(steps_per_epoch(len(samples), size)):
        rows = order[k * size : (k + 1) * size]
        x = samples.x[rows]
        if augment != "none":
            x = crop_and_flip(x, generator, flip=augment == "crop-flip")
        yield Samples(x, samples.y[rows], samples.index[rows])


def steps_per_epoch(total: int, size: int) -> int:
    """Number of full batches, at least one."""
    return max(1, total // size)


def crop_and_flip(x: torch.Tensor, generator: np.random.Generator, flip: bool) -> torch.Tensor:
    """Images (N, C, H, W) zero-padded by an eighth, cropped at random and flipped half of the time.

    An eighth of 32 pixels are the four of roth2020 A.4.
    """
    pad = max(1, x.shape[-1] // 8)
    shifts = torch.from_numpy(generator.integers(0, 2 * pad + 1, size=(len(x), 2)))
    mirrored = torch.from_numpy(generator.random(len(x)) < 0.5)
    windows = F.pad(x, (pad, pad, pad, pad)).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    cropped = windows[torch.arange(len(x)), :, shifts[:, 0], shifts[:, 1]]
    if flip:
        cropped = torch.where(mirrored[:, None, None, None], cropped.flip(-1), cropped)
    return cropped.contiguous()


def augmentation(settings: Settings, input_shape: tuple[int, ...]) -> Augment:
    """Which augmentation to use; `auto` is crop-flip for colour images, and none where mirrors make no sense."""
    chosen = settings.augment
    if chosen == "auto":
        return "crop-flip" if len(input_shape) == 3 and input_shape[0] == 3 else "none"
    if chosen != "none" and len(input_shape) != 3:
        raise DataError(f"--augment {chosen} needs images.", "Pass --augment none.")
    return chosen
