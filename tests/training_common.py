"""Small networks and steps for the tests of training methods."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from specdiag import plugins
from specdiag.linalg.layers import from_module
from specdiag.loading.architectures import network_for
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.sampling import Draws
from specdiag.schema import build
from specdiag.training._context import Run, Step
from specdiag.training._data import Samples
from specdiag.training._layers import linear_layers
from specdiag.training._settings import Settings, TrainConfig


def method(name: str, **options: Any) -> Any:
    return build(plugins.load("training", name).options, options)


def run_of(network: nn.Module, shape: tuple[int, ...], classes: int = 3) -> Run:
    torch.manual_seed(7)
    x = torch.rand(64, *shape).double()
    samples = Samples(x, torch.zeros(64, dtype=torch.int64), np.arange(64))
    return Run(
        network.double(),
        nn.Identity(),
        Settings(),
        shape,
        classes,
        2.0,
        0.0,
        1.0,
        Draws(0),
        torch.device("cpu"),
        samples,
    )


def linear(classes: int = 3, size: int = 6) -> Run:
    torch.manual_seed(0)
    return run_of(nn.Sequential(nn.Linear(size, classes)), (size,), classes)


def convolutional() -> Run:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    run = run_of(network, (1, 6, 6))
    network[1].running_mean.normal_(0, 0.1)
    network[1].running_var.uniform_(0.5, 2)
    network.eval()
    return run


def step_of(run: Run, count: int = 8, initial: Any = None) -> Step:
    torch.manual_seed(1)
    x = torch.rand(count, *run.input_shape).double()
    step = Step(run, x, torch.arange(count) % run.classes, np.arange(count), 0, 0)
    if initial is not None:
        step.state = initial.initial_state(run)
    return step


def gradients(run: Run, value: torch.Tensor) -> list[torch.Tensor]:
    return [
        g.detach()
        for g in torch.autograd.grad(value, list(run.network.parameters()), allow_unused=True)
        if g is not None
    ]


def dense(run: Run) -> list[torch.Tensor]:
    """Each layer as a matrix."""
    found = []
    for layer in linear_layers(run, "operator"):
        if layer.convolution is None:
            found.append(layer.weight.detach())
        else:
            found.append(layer.convolution.operator().dense())
    return found


def jacobians(run: Run, x: torch.Tensor) -> torch.Tensor:
    """(N, K, D) by plain autograd, for a network in eval mode."""
    rows = [torch.autograd.functional.jacobian(lambda z: run.forward(z[None])[0], sample) for sample in x]
    return torch.stack(rows).flatten(2)


def with_batch_statistics(run: Run, x: torch.Tensor) -> Run:
    """The same network in eval mode, its running statistics those of the batch."""
    network = copy.deepcopy(run.network).train()
    network[1].momentum = 1.0
    network(x)
    count = x.numel()
    # what BatchNorm keeps is the unbiased variance, what it divides by is the biased one
    network[1].running_var.mul_((count - 1) / count)
    return dataclasses.replace(run, network=network.eval())


SMALL: dict[str, Any] = {
    "epochs": 2,
    "train_samples": 160,
    "batch_size": 32,
    "test_samples": 40,
    "curve_samples": 16,
    "device": "cpu",
}


def slim(out: Path, name: str, options: Any = None, **settings: Any) -> TrainConfig:
    return TrainConfig(
        method=name,
        out=out,
        options=options or {},
        settings=Settings(**{**SMALL, **settings}),
        arch="cnn4",
        arch_args={"width": 4},
    )


def true_norms(path: Path) -> dict[str, float]:
    """Spectral norm of every layer of a cnn4 on 8x8 images, from its matrix."""
    checkpoint = read_checkpoint(path)
    known = checkpoint.metadata
    network = network_for(checkpoint.tensors, known["architecture"], known["arch_args"])[0].double()
    norms = {}
    for name, side in (("conv1", 8), ("conv2", 8), ("conv3", 4), ("conv4", 4)):
        matrix = from_module(network.get_submodule(name), (side, side)).operator().dense()
        norms[name] = float(torch.linalg.matrix_norm(matrix, 2))
    norms["linear"] = float(torch.linalg.matrix_norm(network.linear.weight.detach(), 2))
    return norms


def towards(run: Run, step: Step) -> torch.Tensor:
    weight = run.network[0].weight.detach()
    probabilities = run.forward(step.x).softmax(1).detach()
    return (probabilities - F.one_hot(step.y, run.classes)) @ weight


def batch_moments(
    run: Run, sgr: Any, step: Step, count: int, of: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """Second moments of `of` the gradients at a few batches, on each of which the penalty is taken."""
    moments = []
    for seed in range(count):
        torch.manual_seed(seed)
        step.x = torch.rand_like(step.x)
        g = of(towards(run, step))
        moments.append(g.T @ g / len(g))
        sgr.penalty(step)
    return moments
