"""The network to train: which architecture, with which arguments, fresh or from a checkpoint."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from specdiag.errors import ArchitectureError, UsageError
from specdiag.loading import architectures
from specdiag.loading.checkpoints import Checkpoint, read_checkpoint
from specdiag.loading.factories import BUILTIN, factory
from specdiag.model import Normalisation
from specdiag.training._context import torch_seed
from specdiag.training._data import TrainingData
from specdiag.training._settings import TrainConfig

FROM_DATA = ("channels", "size", "classes", "sizes", "num_classes")


@dataclass(frozen=True, slots=True)
class Plan:
    """Architecture and normalisation of a run; `init` is the checkpoint to start from."""

    arch: str
    arch_args: dict[str, Any]
    normalisation: Normalisation
    init: Checkpoint | None = None


def plan(config: TrainConfig, data: TrainingData) -> Plan:
    """Settle what the configuration leaves open, from the checkpoint to start from or from the data."""
    start = read_checkpoint(config.init) if config.init is not None else None
    known = start.metadata if start is not None else {}
    arch = config.arch or known.get("architecture")
    if arch is None and start is not None:
        raise ArchitectureError(f"{config.init} does not say its architecture.", "Pass --arch.")
    if arch is None:
        arch = default_architecture(data.input_shape)
    given = dict(config.arch_args) or (dict(known.get("arch_args", {})) if config.arch is None else {})
    if config.normalise is None and "normalise" in known:
        normalisation = Normalisation(
            known["normalise"], tuple(known.get("mean", ())), tuple(known.get("std", ()))
        )
    else:
        normalisation = _normalisation(config, data)
    return Plan(arch, fill_arguments(arch, given, data.input_shape, data.classes), normalisation, start)


def build(plan: Plan, seed: int) -> nn.Module:
    """The network with weights drawn from the seed alone, or with those of the checkpoint to start from."""
    if plan.init is not None:
        return architectures.network_for(plan.init.tensors, plan.arch, plan.arch_args)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "train/weights"))
        return architectures.build(plan.arch, plan.arch_args)


def default_architecture(input_shape: tuple[int, ...]) -> str:
    """cnn7 for images of 32x32 and more, cnn4 for smaller ones, mlp for features."""
    if len(input_shape) == 1:
        return "mlp"
    return "cnn7" if input_shape[-1] >= 32 else "cnn4"


def fill_arguments(
    arch: str, given: Mapping[str, Any], input_shape: tuple[int, ...], classes: int
) -> dict[str, Any]:
    """The factory's arguments with those that follow from the data, where it takes them and has none."""
    arguments = dict(given)
    if not (arch in BUILTIN or arch.startswith(("torchvision:", "timm:"))):
        return arguments
    try:
        taken = inspect.signature(factory(arch)).parameters
    except (TypeError, ValueError):
        return arguments
    derived: dict[str, Any] = {"classes": classes, "num_classes": classes}
    if len(input_shape) == 3:
        derived |= {"channels": input_shape[0], "size": input_shape[1], "in_chans": input_shape[0]}
    if "sizes" in taken:
        default = taken["sizes"].default
        derived["sizes"] = [math.prod(input_shape), *default[1:-1], classes]
    open_ended = any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in taken.values())
    for name, value in derived.items():
        wanted = name in taken or (open_ended and name == "num_classes")
        if wanted and name not in arguments:
            arguments[name] = value
    return arguments


def _normalisation(config: TrainConfig, data: TrainingData) -> Normalisation:
    colour = len(data.input_shape) == 3 and data.input_shape[0] == 3
    kind = config.normalise or ("channel" if config.mean or not colour else "per-image")
    if kind != "channel":
        if config.mean or config.std:
            raise UsageError(f"--mean and --std have no meaning with --normalise {kind}.", "Leave them out.")
        return Normalisation(kind)
    if bool(config.mean) != bool(config.std):
        raise UsageError("--mean and --std belong together.", "Give both or neither.")
    if config.mean:
        return Normalisation("channel", config.mean, config.std)
    x = data.train.x.double()
    dims = (0, *range(2, x.ndim)) if x.ndim == 4 else tuple(range(x.ndim))
    mean, std = x.mean(dims), x.std(dims, correction=0)
    # six digits are enough for a shift and a scale, and read well in the file
    return Normalisation("channel", _rounded(mean), _rounded(std))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values.reshape(-1))
