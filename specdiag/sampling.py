"""Which samples, and every random number keyed by sample.

Draws do not depend on batch size, order, device, shard or number of machines: they come from numpy's
Philox with key = SHA-256(seed, purpose) and counter = sample index, in float64, and are cast and moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

CHUNK_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers of one run; `seed` is the run's seed."""

    seed: int

    def generator(self, purpose: str, index: int | None = None) -> np.random.Generator:
        """The generator of one sample (`index` in the data set), or of all samples when `index` is None."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        key = np.frombuffer(digest[:16], np.uint64)
        # the index sits in the highest counter word: streams of two samples can never overlap
        counter = np.array([0, 0, 0 if index is None else 1, index or 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def normal(
        self, purpose: str, index: Any, shape: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Standard normal numbers, float64, (len(index), *shape): row i belongs to sample index[i]."""
        rows = [self.generator(purpose, int(entry)).standard_normal(shape) for entry in index]
        return np.stack(rows) if rows else np.zeros((0, *shape))

    def uniform(
        self, purpose: str, index: Any, shape: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Uniform numbers in [0, 1), float64, (len(index), *shape): row i belongs to sample index[i]."""
        rows = [self.generator(purpose, int(entry)).random(shape) for entry in index]
        return np.stack(rows) if rows else np.zeros((0, *shape))

    def shared_normal(self, purpose: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Standard normal numbers shared by all samples (regression design, random twin)."""
        return self.generator(purpose).standard_normal(shape)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples on the model's device, in the model's dtype.

    x: (N, *input shape), in the space of the data set; y: (N,) int64 labels, or None without labels;
    index: (N,) int64 index of each sample in its split; split: `train`, `test` or `both`; draws: the run's random
    numbers; facts: figures of the whole run's data that options depend on (`mean_norm`, `median_norm`: of ||x||_2 over
    all chosen samples; `low`, `high`: the range of the data); real: how many samples are not padding.
    """

    x: torch.Tensor
    y: torch.Tensor | None
    index: np.ndarray[Any, np.dtype[np.int64]]
    split: str
    draws: Draws
    facts: Mapping[str, float] = field(default_factory=dict)
    real: int | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def count(self) -> int:
        """Number of samples that are not padding; they come first."""
        return len(self) if self.real is None else self.real

    def unpadded(self) -> Batch:
        """The batch without its padding."""
        count = self.count
        if count == len(self):
            return self
        y = None if self.y is None else self.y[:count]
        return replace(self, x=self.x[:count], y=y, index=self.index[:count], real=None)

    def padded(self, size: int) -> Batch:
        """The batch with its last sample repeated up to `size` samples (DECISIONS 1)."""
        missing = size - len(self)
        if missing <= 0:
            return self
        import torch

        x = torch.cat([self.x, self.x[-1:].expand(missing, *self.x.shape[1:])])
        y = None if self.y is None else torch.cat([self.y, self.y[-1:].expand(missing)])
        index = np.concatenate([self.index, np.repeat(self.index[-1:], missing)])
        return replace(self, x=x, y=y, index=index, real=len(self))


def choose(total: int, samples: int, seed: int, split: str = "test") -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of the samples to analyse: the first `samples` of a permutation keyed by the seed, sorted.

    A smaller `samples` gives a subset of a larger one (DECISIONS 14).
    """
    order = Draws(seed).generator(f"choose/{split}").permutation(total)
    return np.sort(order[: min(samples, total)]).astype(np.int64)
