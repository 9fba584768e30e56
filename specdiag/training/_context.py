"""What the hooks of a method work with: the run as a whole, and one step of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from specdiag.sampling import Batch, Draws
from specdiag.training._batch_norm import Statistics, recorded, replaced
from specdiag.training._settings import Settings

if TYPE_CHECKING:
    from specdiag.training._data import Samples

State = dict[str, torch.Tensor]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(slots=True, eq=False)
class Run:
    """One training run: the network in training and what never changes while it trains.

    network: takes normalised inputs; scale: data space to normalised; mean_norm: of
    ||x||_2 over the training samples; low, high: range of the data; samples: all training samples;
    layers: the linear layers once they were looked up; kept: what a method made once, by method.
    """

    network: nn.Module
    scale: nn.Module
    settings: Settings
    input_shape: tuple[int, ...]
    classes: int
    mean_norm: float
    low: float
    high: float
    draws: Draws
    device: torch.device
    samples: Samples | None = None
    channels_last: bool = False
    layers: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) of data-space inputs, in whatever mode the network is in."""
        entered = self.scale(x)
        if self.channels_last:
            entered = entered.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.network(entered)
        return logits

    @contextmanager
    def evaluating(self, parameters: bool = True) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """`forward` with BatchNorm and dropout in eval mode: what attacks and power passes see.

        parameters False: no graph to the parameters, which attacks do not need.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        asked = [(tensor, tensor.requires_grad) for tensor in self.network.parameters()]
        self.network.eval()
        if not parameters:
            self.network.requires_grad_(False)
        try:
            yield self.forward
        finally:
            for module, mode in modes:
                module.training = mode
            for tensor, wanted in asked:
                tensor.requires_grad_(wanted)


@dataclass(slots=True, eq=False)
class Step:
    """One batch: x (N, *input shape) in data space, y (N,), index (N,) in the training split.

    number: of the step, from 0 over the whole run; last: of its epoch; state: tensors of the method whose
    hook runs.
    """

    run: Run
    x: torch.Tensor
    y: torch.Tensor
    index: Indices
    epoch: int
    number: int
    last: bool = False
    state: State = field(default_factory=dict)
    _logits: torch.Tensor | None = None
    _statistics: Statistics = field(default_factory=dict)

    @property
    def logits(self) -> torch.Tensor:
        """Logits of the batch in training mode, computed once for all hooks."""
        if self._logits is None:
            with recorded(self.run.network) as statistics:
                self._logits = self.run.forward(self.x)
            self._statistics = statistics
        return self._logits

    @contextmanager
    def fixed(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """`forward` as one function of each sample, in which every BatchNorm keeps its statistics of this batch.

        Those have a graph to the weights, so that a penalty cannot be lowered by scaling weights that a
        BatchNorm scales back; with the running statistics it could. Dropout is off.
        """
        _ = self.logits
        with self.run.evaluating() as forward, replaced(self.run.network, self._statistics):
            yield forward

    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the batch's labels."""
        return F.cross_entropy(logits, self.y)

    def loss_gradients(
        self, x: torch.Tensor, forward: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Gradients of each sample's cross-entropy with respect to x, (N, *input shape), with a graph.

        The softmax is taken in float64: in float32 it cancels for confident samples.
        """
        leaf = x.detach().requires_grad_(True)
        loss = F.cross_entropy(forward(leaf).double(), self.y, reduction="sum")
        return torch.autograd.grad(loss, leaf, create_graph=True)[0]

    def purpose(self, name: str) -> str:
        """The key of random numbers drawn for `name` in this epoch."""
        return f"train/{name}/{self.epoch}"

    def as_batch(self) -> Batch:
        """The samples as attacks take them."""
        facts = {"mean_norm": self.run.mean_norm, "low": self.run.low, "high": self.run.high}
        return Batch(self.x, self.y, self.index, "train", self.run.draws, facts)


def torch_seed(seed: int, purpose: str) -> int:
    """A seed for torch's generator that depends on the run's seed and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


@contextmanager
def own_generator(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Leave torch's generators, thread count and convolution settings as they were found."""
    before = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    found = cudnn.deterministic, cudnn.benchmark
    devices = [device] if device.type == "cuda" else []
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = True, False
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = found
