"""The linear and convolutional layers of a network, each use of them as an operator, and their singular values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.linalg import dense
from specdiag.linalg.krylov import golub_kahan
from specdiag.linalg.layers import from_module
from specdiag.model import Model
from specdiag.sampling import Draws

Array = np.ndarray[Any, np.dtype[Any]]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, *CONVOLUTIONS)
# all singular values of one layer where a dense problem takes at most this long
DENSE_SECONDS = 0.6


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

    sigma_max with its error; frobenius; sigma_min (smallest of min(m, n)) and sigma_std (population STD of them), NaN
    for a layer too large for a dense problem.
    """

    uses: tuple[Use, ...]
    sigma_max: Array
    error: Array
    frobenius: Array
    sigma_min: Array
    sigma_std: Array

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
def norms_of(model: Model) -> Norms:
    """Norms of all uses of linear layers; computed once per model, in float64 on the CPU."""
    uses = uses_of(model)
    modules = dict(model.fast.named_modules())
    rows = [_of(modules[use.path], use.size) for use in uses]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 5)
    return Norms(uses, *(table[:, column] for column in range(5)))


def _of(module: nn.Module, size: tuple[int, ...]) -> tuple[float, float, float, float, float]:
    """Sigma_max, its error, Frobenius norm, sigma_min, sigma_std of one layer at one input size."""
    weight: Any = module.weight
    if isinstance(module, nn.Linear):
        matrix = weight.detach().double().cpu()
        # a linear layer on a sequence is the same matrix at every place
        copies = int(np.prod(size[:-1])) if len(size) > 1 else 1
        return _whole(torch.linalg.svdvals(matrix).numpy(), float(matrix.square().sum()) * copies)
    spatial = size[1:]
    layer = from_module(module, spatial)
    stencil = layer.stencil()
    if dense.cost(stencil)[1] <= DENSE_SECONDS:
        return _whole(dense.singular_values(stencil), stencil.squares)
    held: Any = module
    twin: Any = type(held)(
        held.in_channels,
        held.out_channels,
        held.kernel_size,
        held.stride,
        held.padding,
        dilation=held.dilation,
        groups=held.groups,
        padding_mode=held.padding_mode,
        bias=False,
        dtype=torch.float64,
        **({"output_padding": held.output_padding} if layer.transposed else {}),
    )
    twin.weight = nn.Parameter(weight.detach().double().cpu().contiguous(), requires_grad=False)
    operator = from_module(twin, spatial).operator()
    start = torch.from_numpy(Draws(0).shared_normal("operators/start", (1, operator.shape[1])))
    found = golub_kahan(operator, 1, start)
    return float(found.values[0, 0]), float(found.error[0, 0]), stencil.squares**0.5, np.nan, np.nan


def _whole(values: Array, squares: float) -> tuple[float, float, float, float, float]:
    largest = float(values[0])
    return largest, dense.PROMISE * largest, squares**0.5, float(values[-1]), float(values.std())
