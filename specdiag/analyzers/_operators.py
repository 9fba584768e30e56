"""The linear and convolutional layers of a network, each use of them as an operator, and their singular values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.linalg import spectra
from specdiag.linalg.layers import from_module
from specdiag.model import Model

Array = np.ndarray[Any, np.dtype[Any]]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, *CONVOLUTIONS)
# exact methods for a layer where they take about so long, else an estimate of its STD
SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Use:
    """One call of a linear layer.

    name: module path, with #2, #3, ... for further calls of the same module; size: shape of its input without batch.
    """

    name: str
    path: str
    size: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """Per use of a layer, (L,) float64, of the operator with BatchNorm folded in and without bias.

    sigma_max with its error; frobenius; sigma_min (smallest of min(m, n)), NaN for a layer too large for it; sigma_std
    (population STD of all of them) with its error.
    """

    uses: tuple[Use, ...]
    sigma_max: Array
    error: Array
    frobenius: Array
    sigma_min: Array
    sigma_std: Array
    sigma_std_error: Array

    @property
    def names(self) -> list[str]:
        """Name of each use."""
        return [use.name for use in self.uses]


class Capture:
    """While active, keeps input and output of every call of a linear layer of `network`: (name, input, output)."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._handles: list[Any] = []
        self.calls: list[tuple[str, str, torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> Capture:
        for path, module in self._network.named_modules():
            if isinstance(module, LINEAR):
                hook = lambda module, inputs, output, path=path: self._add(path, inputs[0], output)  # noqa: E731
                self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *details: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, path: str, source: torch.Tensor, target: torch.Tensor) -> None:
        earlier = sum(known == path for _, known, _, _ in self.calls)
        name = path if not earlier else f"{path}#{earlier + 1}"
        self.calls.append((name, path, source.detach(), target.detach()))


def uses_of(model: Model) -> tuple[Use, ...]:
    """Every call of a linear layer in one forward pass, in order."""
    x = torch.full((1, *model.input_shape), 0.5, device=model.device, dtype=model.dtype)
    with torch.no_grad(), Capture(model.fast) as capture:
        model.forward(model.to_input(x))
    return tuple(Use(name, path, tuple(source.shape[1:])) for name, path, source, _ in capture.calls)


@lru_cache(maxsize=2)
def norms_of(model: Model, stds: bool = True) -> Norms:
    """Norms of all uses of linear layers; computed once per model, in float64 on the CPU.

    stds: also the STD of large layers, which is what takes long (NaN for them without it).
    """
    uses = uses_of(model)
    modules = dict(model.fast.named_modules())
    rows = [_of(modules[use.path], use.size, stds) for use in uses]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 6)
    return Norms(uses, *(table[:, column] for column in range(6)))


def _of(
    module: nn.Module, size: tuple[int, ...], stds: bool
) -> tuple[float, float, float, float, float, float]:
    """Sigma_max, its error, Frobenius norm, sigma_min, sigma_std and its error of one layer at one input size."""
    weight: Any = module.weight
    copies = 1
    if isinstance(module, nn.Linear):
        found = spectra.of_matrix(weight)
        # a linear layer on a sequence is the same matrix at every place
        copies = int(np.prod(size[:-1])) if len(size) > 1 else 1
    else:
        layer = from_module(module, size[1:])
        # a scale of the kernel is not of interest, its device is: the sums are made on the CPU
        layer = replace(layer, weight=layer.weight.detach().cpu().double())
        settings = spectra.Settings(seconds=SECONDS, quantiles=False)
        if not stds and spectra.choose(layer.stencil(), settings).method not in ("exact", "fft"):
            settings = spectra.Settings(method="krylov")
        found = spectra.of_convolution(layer, settings)
    known = np.isfinite(found.sigma_min.error)
    return (
        found.sigma_max.value,
        found.sigma_max.error,
        found.frobenius * copies**0.5,
        found.sigma_min.value if known else np.nan,
        found.std.value,
        found.std.error if np.isfinite(found.std.error) else np.nan,
    )
