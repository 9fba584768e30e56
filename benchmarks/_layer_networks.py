"""Layers that the benchmarks of `layers` measure, their dense truth where it was computed, and the sketch."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from _table import RESULTS
from layer_truth import convolutions
from torch import nn

from specdiag.linalg.layers import Convolution, convolution
from specdiag.loading.networks.resnet_cifar import ResNetCifar

ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
CHECKPOINT = ASSETS / "checkpoints" / "cifar10-resnet20.th"


def rnd(
    outputs: int, inputs: int, size: int, stride: int = 1, mode: str = "zeros", seed: int = 0
) -> Convolution:
    """A Gaussian 3x3 kernel of variance 1 / (9 C_in), padding 1."""
    draw = np.random.default_rng(seed).standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
    return convolution(torch.from_numpy(draw), (size, size), stride=stride, padding=1, mode=mode)


def network(depth: int = 20) -> dict[str, Convolution]:
    """Convolutions of the trained ResNet-20; of a random one for other depths or where there is no checkpoint."""
    if depth == 20 and CHECKPOINT.exists():
        return convolutions(CHECKPOINT)
    torch.manual_seed(0)
    found: dict[str, Convolution] = {}
    net = ResNetCifar(depth)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: found.update(
                    {name: rnd(*module.weight.shape[:2], inputs[0].shape[2])}
                )
            )
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    return found


def load_sketch() -> ModuleType | None:
    """The working sketch of the method among the shared assets, if it is there."""
    path = ASSETS / "reference" / "zeropad_prototype.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("sketch", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded() -> dict[str, dict]:
    """Dense truth by layer, where it was computed."""
    path = RESULTS / "layer-truth.json"
    return json.loads(path.read_text())["layers"] if path.exists() else {}
