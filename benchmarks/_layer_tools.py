"""What other tools say about one convolution: the published recipe, and packages where they are installed."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from _layer_networks import network, recorded, rnd
from _table import markdown
from torch import nn

from specdiag.errors import SpecdiagError
from specdiag.linalg.layers import Convolution
from specdiag.linalg.spectra import Settings, of_convolution


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


def tools_lines() -> list[str]:
    """Published tools on three layers: what they say, ours, the truth, and the times."""
    layers, known = network(), recorded()
    rows = []
    for name in ("conv1", "layer3.0.conv1", "layer3.1.conv1"):
        layer, truth = layers[name], known.get(name)
        if truth is not None:
            rows.append(
                [
                    name,
                    f"truth (dense, {truth['count']:,} values)",
                    f"{truth['sigma_max']:.4f}",
                    "",
                    f"{truth['std']:.4f}",
                    "",
                    f"{truth['seconds']:.0f}",
                ]
            )
        own = {"specdiag": of_layer, "specdiag, quick look": quick_look}
        for tool, run in {**own, **TOOLS}.items():
            try:
                # the first call imports, and warms up
                run(rnd(4, 3, 8))
                start = time.perf_counter()
                norm, std = run(layer)
                took = f"{time.perf_counter() - start:.3f}"
            except ImportError as error:
                rows.append([name, tool, f"not installed ({error.name})", "", "", "", ""])
                continue
            rows.append(
                [
                    name,
                    tool,
                    f"{norm:.4f}",
                    off(norm, truth and truth["sigma_max"]),
                    "-" if std is None else f"{std:.4f}",
                    "" if std is None else off(std, truth and truth["std"]),
                    took,
                ]
            )
    return [
        markdown(["layer", "tool", "sigma_max", "off", "sigma_std", "off", "s"], rows),
        "",
        "The tools compute other operators (reshaped kernel, circular convolution without stride, slices; WeightWatcher "
        "divides slices by the square root of 2) or a bound. lip4conv itself is on no package index: its zero-padding bound is "
        "taken from orthogonium, which carries it; it knows no stride. Times of tools are without their import.",
    ]


def of_layer(layer: Convolution) -> tuple[float, float | None]:
    """sigma_max, proved, and STD by the method that `auto` takes."""
    found = of_convolution(layer, Settings(quantiles=False))
    return found.sigma_max.value, found.std.value


def quick_look(layer: Convolution) -> tuple[float, float | None]:
    """sigma_max by Lanczos and STD from two small problems."""
    try:
        found = of_convolution(layer, Settings(method="extrapolate", quantiles=False))
    except SpecdiagError:
        return of_layer(layer)
    return found.sigma_max.value, found.std.value


def off(value: float, truth: float | None) -> str:
    """Relative error in percent, or in powers of ten where it is small."""
    if truth is None:
        return ""
    gap = value / truth - 1
    return f"{100 * gap:+.1f} %" if abs(gap) >= 5e-4 else f"{gap:+.0e}"
