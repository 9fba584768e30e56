"""The largest singular values of the Jacobian input -> layer3 (3072 -> 4096) of a ResNet-20 without its matrix.

    python benchmarks/krylov.py [--rounds 3] [--images 3] [--threads N] [--skip-power] [--out FILE]

Writes benchmarks/results/krylov-cpu.md. Compares, in interleaved rounds and in float32, Golub-Kahan-Lanczos on frozen
products with the same solver through torch.func on the network as it is loaded, with scipy's svds on both kinds of
products, and with power iteration with deflation through torch.func, one vector at a time (roth2020 eq. 7). The truth is
the dense Jacobian in float64. Counts are pairs of products. The untrained network is the architecture as it starts, with
He's initialisation. Also: J v in units of a forward pass of the folded network. Threads are torch's default. Needs the
shared assets (SPECDIAG_ASSETS, default ../shared beside the checkout).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from _table import RESULTS, machine, markdown

from specdiag.jacobian.operator import Products
from specdiag.jacobian.rows import by_autograd
from specdiag.linalg.krylov import golub_kahan
from specdiag.linalg.operators import LinearOperator
from specdiag.loading import architectures
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.model import Model, Normalisation

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", ROOT.parent / "shared"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER, TOP, TOLERANCE = "layer3", 10, 1e-6


def network(trained: bool, dtype: torch.dtype) -> Model:
    if trained:
        checkpoint = read_checkpoint(ASSETS / "checkpoints" / "cifar10-resnet20.th")
        module = architectures.network_for(checkpoint.tensors, "resnet20", {})[0]
    else:
        torch.manual_seed(0)
        module = architectures.build("resnet20", {})
    return Model(module, (3, 32, 32), normalisation=Normalisation("channel", MEAN, STD), dtype=dtype)


def images(model: Model, count: int) -> torch.Tensor:
    found = np.load(ASSETS / "data" / "cifar10-test-1k.npz")["x"][:count]
    return model.to_input(torch.from_numpy(found.transpose(0, 3, 1, 2).astype(np.float64) / 255))


def start_of(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Random vectors in the output space, pulled back: clear of the null space."""
    generator = torch.Generator().manual_seed(1)
    products = Products(model, x, LAYER)
    return products.pull(torch.randn(len(x), products.shape[0], generator=generator).to(x.dtype))


def through_functional(x: torch.Tensor) -> LinearOperator:
    """The same Jacobian by torch.func.jvp and torch.func.vjp on the network as it is loaded, in eval mode."""
    checkpoint = read_checkpoint(ASSETS / "checkpoints" / "cifar10-resnet20.th")
    plain: Any = architectures.network_for(checkpoint.tensors, "resnet20", {})[0].eval().requires_grad_(False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    point = x[:1].contiguous()

    def function(value: torch.Tensor) -> torch.Tensor:
        z = torch.relu(plain.bn1(plain.conv1((value - mean) / std)))
        return plain.layer3(plain.layer2(plain.layer1(z))).flatten(1)

    outputs, pull = torch.func.vjp(function, point)

    def push(v: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(function, (point,), (v.reshape(point.shape),))[1]

    def back(u: torch.Tensor) -> torch.Tensor:
        return pull(u)[0].flatten(1)

    return LinearOperator((outputs.shape[1], point.numel()), push, back, x.dtype, x.device, 1)


def deflated_power(
    operator: LinearOperator, start: torch.Tensor, stop: float = 1e-7
) -> tuple[np.ndarray, int]:
    """Power iteration on A^T A, one vector after the other, orthogonal to those found; stops at a change of `stop`."""
    found, values, pairs = [], [], 0
    generator = torch.Generator().manual_seed(2)
    for _ in range(TOP):
        v = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start.dtype)
        before = 0.0
        for _ in range(2000):
            for other in found:
                v = v - (v * other).sum() * other
            v = v / v.norm()
            w = operator.rmatmat(operator.matmat(v))
            pairs += 1
            value = float(w.norm()) ** 0.5
            v = w / w.norm()
            if abs(value - before) < stop * value:
                break
            before = value
        found.append(v)
        values.append(value)
    return np.sort(np.array(values))[::-1], pairs


def svds(operator: LinearOperator) -> tuple[np.ndarray, int]:
    count = [0]

    def push(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return operator.matmat(torch.from_numpy(v.reshape(1, -1)).to(operator.dtype))[0].numpy()

    def back(u: np.ndarray) -> np.ndarray:
        return operator.rmatmat(torch.from_numpy(u.reshape(1, -1)).to(operator.dtype))[0].numpy()

    wrapped = scipy.sparse.linalg.LinearOperator(operator.shape, matvec=push, rmatvec=back, dtype=np.float32)
    values = scipy.sparse.linalg.svds(
        wrapped, TOP, tol=TOLERANCE, return_singular_vectors=False, v0=None, random_state=0
    )
    return np.sort(values)[::-1], count[0]


def pairs_needed(
    model: Model, x: torch.Tensor, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs until the solver's own stop, its relative error then, and the seconds it took for all samples."""
    products = Products(model, x, LAYER)
    start = start_of(model, x)
    begun = time.perf_counter()
    found = golub_kahan(products.operator(), TOP, start, tolerance=TOLERANCE)
    seconds = time.perf_counter() - begun
    error = np.abs(found.values / truth - 1).max(1)
    return found.pairs, error, np.array(seconds)


def truth_of(model: Model, x: torch.Tensor) -> np.ndarray:
    rows = []
    for sample in x:
        matrix = by_autograd(model, sample[None], LAYER).matrix[0]
        gram = matrix.T @ matrix
        rows.append(torch.linalg.eigvalsh(gram).flip(0)[:TOP].clamp_min(0).sqrt().numpy())
    return np.stack(rows)


def forward_cost(model: Model, x: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Seconds of J v, and of J v with J^T u, over seconds of a forward pass, medians of interleaved rounds."""
    products = Products(model, x, LAYER)
    v = torch.randn(len(x), products.shape[1], dtype=x.dtype)
    u = torch.randn(len(x), products.shape[0], dtype=x.dtype)

    def timed(run: Callable[[], object]) -> float:
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    def forward() -> None:
        with torch.no_grad():
            model.forward(x, LAYER)

    runs = (forward, lambda: products.push(v), lambda: products.pull(u))
    for run in runs:
        run()
    times = np.array([[timed(run) for run in runs] for _ in range(rounds)])
    push = float(np.median(times[:, 1] / times[:, 0]))
    return push, push + float(np.median(times[:, 2] / times[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--skip-power", action="store_true", help="leave out the slow power iteration")
    parser.add_argument("--threads", type=int, help="torch's default where left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "krylov-cpu.md")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    command = " ".join(["python benchmarks/krylov.py", *sys.argv[1:]])
    parts = [
        f"# The largest singular values of a Jacobian without its matrix\n\n`{command}` on {machine()}\n\nResNet-20, input "
        f"-> {LAYER} (3072 -> 4096), top {TOP}, relative tolerance {TOLERANCE:g}.",
        f"## Pairs of products until the solver's own stop\n\n{pairs_table(given)}",
        f"## Products\n\n{products_table()}",
        f"## Beside other ways\n\n{compare(given)}",
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


def pairs_table(given: argparse.Namespace) -> str:
    """Pairs and errors of a trained and an untrained network in both precisions."""
    rows = []
    for trained in (True, False):
        double = network(trained, torch.float64)
        truth = truth_of(double, images(double, given.images))
        for name, model in (("float64", double), ("float32", network(trained, torch.float32))):
            pairs, error, seconds = pairs_needed(model, images(model, given.images), truth)
            rows.append(
                [
                    "trained" if trained else "untrained",
                    name,
                    ", ".join(str(count) for count in pairs.tolist()),
                    "at most 40" if trained else "at most 64",
                    f"{error.max():.1e}",
                    f"{float(seconds) / given.images:.3f}",
                ]
            )
            print(rows[-1], flush=True)
    titles = ["network", "dtype", "pairs, by image", "goal", "largest relative error", "s a sample"]
    return markdown(titles, rows)


def products_table() -> str:
    """J v and a pair in units of a forward pass."""
    model = network(True, torch.float32)
    push, pair = forward_cost(model, images(model, 16), 15)
    rows = [["J v", f"{push:.2f}", "at most 1.1"], ["J v and J^T u", f"{pair:.2f}", "at most 2.4"]]
    return "16 samples, float32.\n\n" + markdown(["what", "forward passes", "goal"], rows)


def compare(given: argparse.Namespace) -> str:
    """Our solver beside itself on torch.func, scipy's, and power iteration with deflation."""
    model, double = network(True, torch.float32), network(True, torch.float64)
    x, truth = images(model, 1), truth_of(double, images(double, 1))[0]
    start = start_of(model, x)
    frozen, functional = Products(model, x, LAYER).operator(), through_functional(x)

    def krylov(operator: LinearOperator) -> tuple[np.ndarray, int]:
        found = golub_kahan(operator, TOP, start, tolerance=TOLERANCE)
        return found.values[0], int(found.pairs[0])

    def whole() -> tuple[np.ndarray, int]:
        # building the products counts
        return krylov(Products(model, x, LAYER).operator())

    base = "GKL, frozen products"
    runs: dict[str, Callable[[], tuple[np.ndarray, int]]] = {
        base: whole,
        "GKL, torch.func": lambda: krylov(functional),
        "svds, frozen products": lambda: svds(frozen),
        "svds, torch.func": lambda: svds(functional),
    }
    if not given.skip_power:
        runs["power iteration with deflation, torch.func"] = lambda: deflated_power(functional, start)
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, tuple[float, int]] = {}
    for number in range(given.rounds + 1):
        for name, run in runs.items():
            if not number and name.startswith("power"):
                # minutes long: what its first round warms up is not worth them
                continue
            begun = time.perf_counter()
            values, pairs = run()
            if number:
                times[name].append(time.perf_counter() - begun)
            found[name] = float(np.abs(values / truth - 1).max()), pairs
    goals = {"GKL, torch.func": "at least 3", "power iteration with deflation, torch.func": "at least 50"}
    rows = [
        [
            name,
            f"{statistics.median(values):.3f}",
            f"{statistics.median(v / b for v, b in zip(values, times[base], strict=True)):.1f}",
            goals.get(name, ""),
            str(found[name][1]),
            f"{found[name][0]:.1e}",
        ]
        for name, values in times.items()
    ]
    titles = ["way", "s", "times slower than the first", "goal", "pairs", "relative error"]
    intro = (
        f"One sample, float32, medians of {given.rounds} interleaved rounds, one run each before them (not of power "
        "iteration)."
    )
    return f"{intro}\n\n{markdown(titles, rows)}"


if __name__ == "__main__":
    main()
