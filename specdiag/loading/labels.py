"""Labels drawn at random for training (Zhang et al. 2017; farnia2019 Fig. 4), and data with those a network learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from specdiag.loading.datasets import Data, hash_arrays
from specdiag.sampling import Draws

Indices = np.ndarray[Any, np.dtype[np.int64]]


def random_labels(index: Indices, classes: int, draws: Draws) -> Indices:
    """Labels (N,) drawn uniformly for each sample by its index in the split: any run can draw them again."""
    drawn = [draws.generator("labels/random", int(entry)).integers(classes) for entry in index]
    return np.array(drawn, dtype=np.int64)


def as_trained(data: Data, spec: str, train: Mapping[str, Any], classes: int) -> Data:
    """The data with the labels that a checkpoint was trained on, where those were random.

    spec, train: data set and training facts of the checkpoint; classes: its outputs. Samples of the test
    split, of another data set, and of checkpoints trained on true labels keep theirs.
    """
    if train.get("labels") != "random" or data.y is None or data.spec != spec:
        return data
    seed = train.get("seed")
    if not isinstance(seed, int):
        return data
    splits = data.splits if data.splits is not None else (data.split,) * len(data)
    trained = np.array([split == "train" for split in splits], dtype=bool)
    if not trained.any():
        return data
    y = data.y.copy()
    y[trained] = random_labels(data.index[trained], data.classes or classes, Draws(seed))
    return dataclasses.replace(data, y=y, sha256=hash_arrays(data.x, y))
