"""Small networks and batches for the tests of attacks and of the analyzers that use them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.loading.networks.cnn import Cnn4
from specdiag.loading.networks.mlp import Mlp
from specdiag.model import Model, Normalisation
from specdiag.sampling import Batch, Draws


def batch_of(model: Model, x: Any, y: Any = None, seed: int = 0, first: int = 0) -> Batch:
    x = model.to_input(x)
    norms = torch.linalg.vector_norm(x.double().flatten(1), dim=1)
    facts = {"mean_norm": float(norms.mean()), "median_norm": float(norms.median()), "low": 0.0, "high": 1.0}
    labels = None if y is None else torch.as_tensor(y).to(torch.int64)
    return Batch(x, labels, np.arange(first, first + len(x)), "test", Draws(seed), facts)


def linear_model(
    classes: int = 3, inputs: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, bias: bool = True
) -> Model:
    generator = torch.Generator().manual_seed(seed)
    network = Mlp((inputs, classes), bias=bias)
    with torch.no_grad():
        network.linear.weight.copy_(torch.randn(classes, inputs, generator=generator))
        if bias:
            network.linear.bias.copy_(torch.randn(classes, generator=generator))
    return Model(network, (inputs,), dtype=dtype)


def mlp_model(
    sizes: tuple[int, ...] = (12, 24, 24, 5), seed: int = 0, dtype: torch.dtype = torch.float64
) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Mlp(sizes)
    return Model(network, (sizes[0],), dtype=dtype, factory=lambda: Mlp(sizes))


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train x, y and test x, y of scikit-learn's digits, (n, 1, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    return x[:1400], found.target[:1400].astype(np.int64), x[1400:], found.target[1400:].astype(np.int64)


@cache
def trained_network(epochs: int = 6, width: int = 8) -> nn.Module:
    """cnn4 trained for a second on digits; about 97 % on the test set."""
    x, y, _, _ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cnn4(width=width)
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        images, labels = torch.from_numpy(x), torch.from_numpy(y)
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for rows in order.split(100):
                loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.eval()


def trained_model(dtype: torch.dtype = torch.float32) -> Model:
    import copy

    return Model(copy.deepcopy(trained_network()), (1, 8, 8), dtype=dtype, factory=lambda: Cnn4(width=8))


def digits_batch(model: Model, count: int = 64, seed: int = 0) -> Batch:
    _, _, x, y = digits()
    return batch_of(model, x[:count], y[:count], seed)


def resnet20(assets: Path, dtype: torch.dtype = torch.float32) -> Model:
    """The public ResNet-20 of the shared assets, with its normalisation inside."""
    from specdiag.loading import architectures
    from specdiag.loading.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(assets / "checkpoints" / "cifar10-resnet20.th")
    network, _ = architectures.network_for(checkpoint.tensors, "resnet20", {})
    normalisation = Normalisation("channel", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Model(
        network,
        (3, 32, 32),
        normalisation=normalisation,
        dtype=dtype,
        factory=lambda: architectures.build("resnet20", {}),
    )


def cifar_batch(assets: Path, model: Model, count: int, seed: int = 0) -> Batch:
    found = np.load(assets / "data" / "cifar10-test-1k.npz")
    x = found["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return batch_of(model, x, found["y"][:count].astype(np.int64), seed)
