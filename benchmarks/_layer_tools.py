"""What other tools say about one convolution: the published recipe, and packages where they are installed."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from specdiag.linalg.layers import Convolution


def recipe(kernel: np.ndarray, size: int, stride: int) -> np.ndarray:
    """All singular values by the published recipe (Sedghi et al.): a full two-dimensional FFT and a complex SVD.

    A stride folds the transform of the input's grid into blocks (aliasing), as a user would add it.
    """
    transform = np.fft.fft2(kernel, (size, size), axes=(2, 3))
    if stride == 1:
        return np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False)
    outputs, inputs = kernel.shape[:2]
    small = size // stride
    blocks = transform.reshape(outputs, inputs, stride, small, stride, small).transpose(3, 5, 0, 2, 4, 1)
    return np.linalg.svd(blocks.reshape(small, small, outputs, -1) / stride, compute_uv=False)


def module_of(layer: Convolution) -> nn.Conv2d:
    """The layer as a module, for tools that take one."""
    inputs, outputs = layer.channels
    module = nn.Conv2d(inputs, outputs, layer.kernel, layer.stride, 1, bias=False)
    module.weight.data.copy_(layer.weight)
    return module


def spectral_norm(layer: Convolution) -> tuple[float, float | None]:
    """torch's own: power iteration on the reshaped kernel."""
    torch.manual_seed(0)
    module = nn.utils.parametrizations.spectral_norm(module_of(layer), n_power_iterations=100)
    with torch.no_grad():
        return float(layer.weight.norm() / module.weight.norm()), None


def published_fft(layer: Convolution) -> tuple[float, float | None]:
    """Sedghi et al. as published: circular, no stride."""
    values = recipe(layer.weight.double().numpy(), layer.size[0], 1)
    return float(values.max()), float(values.std())


def weightwatcher(layer: Convolution) -> tuple[float, float | None]:
    """WeightWatcher's default: the kernel's nine slices."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import weightwatcher

        details = weightwatcher.WeightWatcher(model=nn.Sequential(module_of(layer))).analyze(
            min_evals=1, plot=False
        )
    return float(details["spectral_norm"].iloc[0]) ** 0.5, None


def orthogonium(layer: Convolution) -> tuple[float, float | None]:
    """Gram iteration bound for zero padding (Delattre et al. 2024), its default of 4 iterations."""
    from orthogonium.layers.conv.singular_values.delattre24 import compute_delattre2024

    return float(compute_delattre2024(layer.weight, n_iter=4)), None


TOOLS: dict[str, Callable[[Convolution], tuple[float, float | None]]] = {
    "torch spectral_norm, 100 iterations": spectral_norm,
    "numpy fft2 recipe (no stride)": published_fft,
    "WeightWatcher": weightwatcher,
    "orthogonium (Delattre 2024 bound)": orthogonium,
}
