"""Analyzers of kind `weights`: the network alone, without samples; the architecture may be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xarray
from torch import nn

from specdiag.errors import NothingAnalysed
from specdiag.model import Model, ModelInfo, Normalisation
from specdiag.runner import as_numpy, to_dataset
from specdiag.schema import Analyzer


@dataclass(frozen=True, slots=True)
class Weights:
    """What an analyzer of weights is given.

    module: the network in eval mode, frozen, or None where no architecture is known; tensors: name -> tensor on the
    CPU; input_shape: of one sample without the batch axis, or None where nothing says it; model and data_x: the model in
    input space and some samples (N, *input shape) where data were named, else None.
    """

    module: nn.Module | None
    tensors: Mapping[str, torch.Tensor]
    input_shape: tuple[int, ...] | None
    info: ModelInfo
    normalisation: Normalisation
    model: Model | None = None
    data_x: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class WeightsTask:
    """One analyzer over one network's weights."""

    weights: Weights
    analyzer: Analyzer
    options: Any
    seed: int


def run_weights(task: WeightsTask) -> xarray.Dataset:
    """The arrays of a weights analyzer as a dataset."""
    found = {
        name: as_numpy(value) for name, value in task.analyzer.compute(task.weights, task.options).items()
    }
    coordinates = {name: found.pop(name) for name in list(found) if name in task.analyzer.coordinates}
    if not found or any(array.size == 0 for array in coordinates.values()):
        raise NothingAnalysed("No layer was analysed.", "specdiag inspect CKPT lists what is in the file.")
    return to_dataset(task.analyzer, found, coordinates, None)
