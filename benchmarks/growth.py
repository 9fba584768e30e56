"""How gradients of fresh networks grow with the image (simongabriel2019, Theorems 4 to 7).

    python benchmarks/growth.py [--draws 40] [--width 32] [--out FILE]

Writes benchmarks/results/growth.md. Every network is drawn `--draws` times at 32 to 256 pixels a side; the slopes are
those of the logarithm of the mean norm against the logarithm of D, the number of inputs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _table import RESULTS, machine, markdown
from torch import nn
from torch.nn import functional as F

from specdiag.loading.architectures import build
from specdiag.loading.networks._parts import start_as_he

SIZES = (32, 64, 128, 256)
QUANTITIES = ("‖grad_x L‖_1", "‖grad_x L‖_2", "‖grad f_k‖_2", "mean abs df_k")
EXPECTED = (0.5, 0.0, 0.0, -0.5)
WINDOWS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), (4, 4))
Make = Callable[[int], nn.Module]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def networks(width: int) -> dict[str, Make]:
    """Networks by name, each a function of the side of its images; fresh weights of He's variance, no BatchNorm."""

    def mlp(size: int) -> nn.Module:
        network = build("mlp", {"sizes": [3 * size * size, 4 * width, 4 * width, 10]})
        start_as_he(network)
        return network

    def convolutional(spec: str, **args: Any) -> Make:
        return lambda size: build(spec, {"size": size, "width": width, "norm": "none", **args})

    return {
        "mlp": mlp,
        "strided6, circular": convolutional("strided6", padding_mode="circular"),
        "dilated8": convolutional("dilated8"),
        "strided6, zero-padded": convolutional("strided6"),
    }


def gradient_norms(network: nn.Module, x: torch.Tensor) -> list[float]:
    """Means over samples of the four `QUANTITIES`; k is the first class, labels are drawn."""
    x = x.requires_grad_(True)
    logits = network(x)
    labels = torch.randint(logits.shape[1], (len(x),))
    loss = F.cross_entropy(logits, labels, reduction="sum")
    of_loss = torch.autograd.grad(loss, x, retain_graph=True)[0].flatten(1)
    of_logit = torch.autograd.grad(logits[:, 0].sum(), x)[0].flatten(1)
    return [
        float(of_loss.abs().sum(1).mean()),
        float(of_loss.norm(dim=1).mean()),
        float(of_logit.norm(dim=1).mean()),
        float(of_logit.abs().mean()),
    ]


def drawn(make: Make, sizes: Sequence[int], draws: int, samples: int = 2) -> Numbers:
    """`gradient_norms` of every draw and size, (draws, sizes, 4); inputs are standard normal."""
    rows = []
    for seed in range(draws):
        row = []
        for size in sizes:
            torch.manual_seed(seed)
            network = make(size).eval()
            torch.manual_seed(1000 * seed + size)
            row.append(gradient_norms(network, torch.randn(samples, 3, size, size)))
        rows.append(row)
    return np.array(rows)


def slopes(norms: Numbers, sizes: Sequence[int]) -> tuple[Numbers, Numbers]:
    """Slopes (4,) of the logarithm of the mean norm against log D, and their errors over draws by jackknife."""
    inputs = np.log(3.0 * np.square(sizes))

    def fitted(part: Numbers) -> Numbers:
        return np.array(np.polyfit(inputs, np.log(part.mean(0)), 1)[0])

    count = len(norms)
    left_out = np.stack([fitted(np.delete(norms, k, 0)) for k in range(count)])
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0))
    return fitted(norms), error


def pooled(windows: tuple[int, int], width: int) -> nn.Module:
    """Two blocks of convolution, ReLU and mean over disjoint windows, then convolution, ReLU, linear; 32x32 images."""
    rows: list[nn.Module] = []
    channels, side = 3, 32
    for window in windows:
        rows += [_convolution(channels, width), nn.ReLU(), nn.AvgPool2d(window)]
        channels, side = width, side // window
    rows += [_convolution(channels, width), nn.ReLU(), nn.Flatten(), nn.Linear(width * side * side, 10)]
    network = nn.Sequential(*rows)
    start_as_he(network)
    return network


def pooling(draws: int, width: int) -> tuple[Numbers, Numbers, float]:
    """a_1 a_2 and mean ||grad f_k||_2 of every pair of `WINDOWS`, (7,) each, and the slope of their logarithms."""
    areas, means = [], []
    for windows in WINDOWS:
        found = []
        for seed in range(draws):
            torch.manual_seed(seed)
            found.append(gradient_norms(pooled(windows, width), torch.randn(4, 3, 32, 32))[2])
        areas.append(math.prod(windows) ** 2)
        means.append(np.mean(found))
    a, b = np.array(areas, float), np.array(means)
    return a, b, float(np.polyfit(np.log(a), np.log(b), 1)[0])


def halved(draws: int, width: int, size: int = 32) -> float:
    """||grad f_k||_2 of `pool6` with strides over that with mean pools of 4, 4 and 4 values: 8 by Theorem 7."""
    mean = {}
    for pool in ("strided", "avg"):
        args = {"pool": pool, "width": width, "size": size, "norm": "none", "padding_mode": "circular"}
        found = []
        for seed in range(draws):
            torch.manual_seed(seed)
            found.append(gradient_norms(build("pool6", args).eval(), torch.randn(4, 3, size, size))[2])
        mean[pool] = np.mean(found)
    return float(mean["strided"] / mean["avg"])


def _convolution(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1, padding_mode="circular")


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in networks(given.width).items():
        found, error = slopes(drawn(make, SIZES, given.draws), SIZES)
        off = float(np.abs(found - EXPECTED).max())
        cells = [f"{value:+.3f} ± {spread:.3f}" for value, spread in zip(found, error, strict=True)]
        rows.append([name, *cells, f"{off:.3f}"])
        print(name, *cells, flush=True)
    titles = ["network", *QUANTITIES, "largest difference"]
    growth = markdown(titles, [["expected", *(f"{value:+.1f}" for value in EXPECTED), "at most 0.05"], *rows])
    areas, means, slope = pooling(given.draws, given.width)
    constant = means * np.sqrt(areas)
    table = [
        [f"{w[0]}x{w[0]}, {w[1]}x{w[1]}", f"{area:g}", f"{mean:.4f}", f"{product:.3f}"]
        for w, area, mean, product in zip(WINDOWS, areas, means, constant, strict=True)
    ]
    pools = markdown(["windows", "a_1 a_2", "‖grad f_k‖_2", "times sqrt(a_1 a_2)"], table)
    text = f"""# Growth of gradients with the image, {machine()}

Slopes against log D at {", ".join(map(str, SIZES))} pixels a side, {given.draws} draws of He's weights, width {given.width}.

{growth}

The theorems ask that all inputs have paths of the same degrees. Zero padding breaks that at borders, and `strided6` has
a last map of one value at 32 pixels and of 8x8 at 256, so that borders weigh less as images grow; circular padding has
no borders, and `dilated8` keeps its maps in proportion.

## Mean pools (Theorem 7)

{pools}

Slope of ‖grad f_k‖_2 against a_1 a_2: {slope:+.3f} (expected -0.5). `pool6` with strides over `pool6` with three 2x2
means: {halved(given.draws, given.width):.2f} (expected 8).
"""
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
