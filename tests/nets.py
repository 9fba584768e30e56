"""Small networks and references that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.model import Model
from specdiag.sampling import Batch, Draws

Array = np.ndarray[Any, np.dtype[Any]]


def linear_model(weight: Array, bias: Array | None = None, **kwargs: Any) -> Model:
    """f(x) = W x + b in float64."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = torch.from_numpy(weight)
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias)
    kwargs.setdefault("dtype", torch.float64)
    return Model(nn.Sequential(layer), (weight.shape[1],), **kwargs)


def with_singular_values(values: Array, rows: int, columns: int, seed: int = 0) -> Array:
    """U diag(s) V^T with random orthogonal U (rows x r) and V (columns x r)."""
    generator = np.random.default_rng(seed)
    r = len(values)
    u = np.linalg.qr(generator.standard_normal((rows, r)))[0]
    v = np.linalg.qr(generator.standard_normal((columns, r)))[0]
    return (u * values) @ v.T


def batch_of(x: torch.Tensor, y: torch.Tensor | None = None, seed: int = 0, **facts: float) -> Batch:
    """A batch with indices 0..N-1."""
    norms = torch.linalg.vector_norm(x.double().flatten(1), dim=1)
    known = {"mean_norm": float(norms.mean()), "median_norm": float(norms.median()), "low": 0.0, "high": 1.0}
    return Batch(x, y, np.arange(len(x)), "test", Draws(seed), {**known, **facts})


def small_cnn(seed: int = 0, classes: int = 4) -> nn.Module:
    """Convolutions with BatchNorm, ReLU and max-pooling for inputs of 2 x 8 x 8."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 7),
        nn.ReLU(),
        nn.Linear(7, classes),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return network


def oracle_jacobian(network: nn.Module, x: torch.Tensor) -> Array:
    """Slow float64 reference: one sample and one output at a time, (N, K, D)."""
    network = network.double().eval()
    result = []
    for sample in x.double():
        leaf = sample[None].clone().requires_grad_(True)
        out = network(leaf).flatten()
        rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0].flatten().numpy() for value in out]
        result.append(np.stack(rows))
    return np.stack(result)
