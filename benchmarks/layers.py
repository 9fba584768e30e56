"""Spectra of convolutions beside the ways they are otherwise computed, interleaved in one run.

    python benchmarks/layers.py [--quick] [--full] [--rounds 5] [--section NAME ...] [--out FILE]

Writes benchmarks/results/layers-cpu.md, each section in place of its older self. Trained layers are those of the CIFAR
ResNet-20 checkpoint in the folder of shared assets (SPECDIAG_ASSETS); without it random kernels of the same shapes stand
in. The dense truth of the large ones is read from results/layer-truth.json (benchmarks/layer_truth.py). --quick leaves
out what takes longest; --full also runs the dense eigenvalues of a layer with n = 16,384 (5 minutes on an idle core)
instead of taking their time from that file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _layer_networks import CHECKPOINT, load_sketch, network, recorded, rnd
from _layer_tools import recipe, tools_lines
from _sections import replace
from _table import RESULTS, interleaved, machine, markdown, ratio

from specdiag.analyzers._layers_rows import Row, rows_of
from specdiag.analyzers._layers_uses import Use
from specdiag.analyzers.layers import SHARES
from specdiag.linalg import circular, dense, extrapolate
from specdiag.linalg.counts import Ranks
from specdiag.linalg.cut import Cut
from specdiag.linalg.estimate import Estimate, mean_and_std
from specdiag.linalg.largest import largest
from specdiag.linalg.layers import Convolution, convolution
from specdiag.linalg.spectra import Settings
from specdiag.linalg.stencil import Stencil


def circular_section(options: argparse.Namespace) -> list[str]:
    """Every singular value of circular convolutions."""
    shapes = [
        (32, 16, 32, 1, 3.5),
        (64, 3, 32, 1, 3.5),
        (64, 64, 32, 1, 3.0),
        (64, 64, 56, 1, 3.0),
        (512, 512, 7, 1, 3.0),
        (64, 64, 32, 2, 4.5),
        (256, 256, 14, 2, 4.5),
    ]
    rows = []
    for outputs, inputs, size, stride, goal in shapes:
        if options.quick and outputs > 64:
            continue
        layer = rnd(outputs, inputs, size, stride, "circular")
        stencil, kernel = layer.stencil(), layer.weight.numpy()
        reference = np.sort(recipe(kernel, size, stride).ravel())[::-1]
        ours = circular.singular_values(stencil)
        error = np.max(np.abs(ours - reference) / reference)
        times = interleaved(
            {
                "recipe": lambda k=kernel, n=size, s=stride: recipe(k, n, s),
                "fft": lambda stencil=stencil: circular.singular_values(stencil),
                "one worker": lambda stencil=stencil: circular.singular_values(stencil, 1),
            },
            options.rounds if outputs < 256 else min(options.rounds, 3),
        )
        rows.append(
            [
                f"{outputs}x{inputs}x3x3@{size}" + (f", stride {stride}" if stride > 1 else ""),
                milliseconds(times["recipe"]),
                milliseconds(times["fft"]),
                f"{ratio(times, 'recipe', 'fft'):.2f}",
                f"{ratio(times, 'recipe', 'one worker'):.2f}",
                f"at least {goal:g}",
                f"{error:.0e}",
            ]
        )
    titles = [
        "circular, all values",
        "recipe ms",
        "fft ms",
        "ratio",
        "one worker",
        "goal",
        "largest relative error",
    ]
    return [
        markdown(titles, rows),
        "",
        "Recipe: numpy `fft2` over the full grid, `np.linalg.svd` of every block. Goal for the error: 1e-6.",
    ]


def dense_svd(stencil: Stencil) -> np.ndarray:
    """All singular values from the dense matrix, the way without any structure."""
    return np.linalg.svd(stencil.sparse().toarray(), compute_uv=False)


def std_of(stencil: Stencil, total: Estimate) -> float:
    """The STD that belongs to a sum of singular values."""
    return mean_and_std(total, stencil.squares, stencil.count)[1].value


def sums_section(options: argparse.Namespace) -> list[str]:
    """Mean and STD of zero-padded convolutions without a dense matrix."""
    rows = []
    trained, truth = network(), recorded()
    layer = rnd(8 if options.quick else 16, 8 if options.quick else 16, 16).stencil()
    start = time.perf_counter()
    values = dense_svd(layer)
    slow = time.perf_counter() - start
    ways: dict[str, Callable[[], Estimate]] = {
        "cut, 5 nodes and small problems": lambda: Cut(layer).total(),
        "cut, 16 nodes": lambda: Cut(layer).total(fine=True),
        "extrapolate": lambda: extrapolate.total(layer),
    }
    times = interleaved(ways, options.rounds)
    for name, way in ways.items():
        error = std_of(layer, way()) / values.std() - 1
        fast = statistics.median(times[name])
        rows.append(
            [
                f"random {label(layer)}",
                "np.linalg.svd",
                f"{slow:.1f}",
                name,
                f"{fast:.3f}",
                f"{slow / fast:.0f}",
                f"{error:+.0e}",
            ]
        )
    name = "layer1.1.conv1"
    stencil = trained[name].stencil()
    if options.full:
        start = time.perf_counter()
        values = dense.singular_values(stencil, refine=False)
        slow, std, how = time.perf_counter() - start, values.std(), "Gram eigvalsh"
    elif name in truth:
        slow, std, how = truth[name]["seconds"], truth[name]["std"], "Gram eigvalsh (recorded)"
    else:
        slow, std, how = float("nan"), float("nan"), "Gram eigvalsh (not recorded)"
    ways = {
        "cut, 16 nodes": lambda: Cut(stencil).total(fine=True),
        "cut, 5 nodes and small problems": lambda: Cut(stencil).total(),
        "extrapolate": lambda: extrapolate.total(stencil),
    }
    times = interleaved(ways, min(options.rounds, 3))
    for way_name, way in ways.items():
        fast = statistics.median(times[way_name])
        error = std_of(stencil, way()) / std - 1
        rows.append(
            [
                f"{name} {label(stencil)}",
                how,
                f"{slow:.0f}",
                way_name,
                f"{fast:.3f}",
                f"{slow / fast:.0f}",
                f"{error:+.0e}",
            ]
        )
    if not options.quick:
        large = rnd(64, 64, 32).stencil()
        start = time.perf_counter()
        total = Cut(large).total()
        took = time.perf_counter() - start
        _, std = mean_and_std(total, large.squares, large.count)
        rows.append(
            [
                f"random {label(large)}",
                "dense: 34 GB",
                "-",
                "cut, 5 nodes and small problems",
                f"{took:.1f}",
                "-",
                f"estimated {std.error / std.value:.0e}",
            ]
        )
    titles = [
        "zero padding, mean and STD",
        "beside",
        "s",
        "specdiag",
        "s",
        "ratio",
        "relative error of the STD",
    ]
    goals = (
        "Goals: 16x16@16 at least 60 times at 1e-5; 16x16@32 at least 100 times at 1e-6; 64x64@32 under 120 s; "
        "extrapolate within 1e-3 in 0.2 s."
    )
    return [markdown(titles, rows), "", goals]


def proofs_section(options: argparse.Namespace) -> list[str]:
    """sigma_max proved by a count, and quantiles by rank."""
    trained = network()
    rows = []
    for name in ("layer1.1.conv1", "layer2.2.conv1", "layer3.1.conv1"):
        layer = trained[name]
        stencil = layer.stencil()
        start = time.perf_counter()
        ranks = Ranks(Cut(stencil))
        found = largest(double(layer).operator(), ranks)
        proof, took = ranks.made, time.perf_counter() - start
        start = time.perf_counter()
        places = [ranks.at(share * stencil.count) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
        each = (time.perf_counter() - start) / sum(place.counts for place in places)
        off = max(
            abs(place.above - share * stencil.count)
            for place, share in zip(places, (0.05, 0.25, 0.5, 0.75, 0.95), strict=True)
        )
        rows.append(
            [
                f"{name} {label(stencil)}",
                f"{found.sigma.value:.7g} ± {found.sigma.error:.0e}",
                "yes" if found.proved else "no",
                str(found.pairs),
                str(proof),
                f"{took:.2f}",
                ", ".join(str(place.counts) for place in places),
                f"{off:.0f}",
                f"{each:.3f}",
            ]
        )
    titles = [
        "zero padding",
        "sigma_max",
        "proved",
        "pairs",
        "counts",
        "s",
        "counts for 5, 25, 50, 75, 95 %",
        "rank off by",
        "s per count",
    ]
    return [
        markdown(titles, rows),
        "",
        "Goals: at most 64 pairs, bracket 2e-6, one count; quantile ranks within 1 in at most 6 counts each.",
    ]


def network_section(options: argparse.Namespace) -> list[str]:
    """All layers of a network beside the sketch at 12 nodes, and a network of three times the depth."""
    sketch = load_sketch()
    layers = network()
    wanted = dict(list(layers.items())[:7]) if options.quick else layers
    truth = recorded()

    def ours(chosen: dict[str, Convolution] = wanted) -> list[Row]:
        # what the analyzer computes of each layer: spectrum, quantiles, kernel and circular stand-ins
        uses = [
            Use(name, (name,), layer=layer, kernel=layer.weight.flatten(1)) for name, layer in chosen.items()
        ]
        return rows_of(uses, Settings(shares=SHARES))

    contenders: dict[str, Callable[[], object]] = {"specdiag layers": ours}
    if sketch is not None:
        contenders["sketch, 12 nodes"] = lambda: [
            sketch.ZeroPadConv(layer.weight.double().numpy(), *layer.size, layer.stride[0], 1, 1).mean_std(12)
            for layer in wanted.values()
        ]
    times = interleaved(contenders, 1 if options.quick else 2)
    rows = [
        [f"ResNet-20, {len(wanted)} convolutions", name, f"{statistics.median(seconds):.1f}"]
        for name, seconds in times.items()
    ]
    lines = []
    if sketch is not None:
        quotient = ratio(times, "specdiag layers", "sketch, 12 nodes")
        lines.append(
            f"specdiag / sketch = {quotient:.2f} (goal at most 1.5). The sketch gives mean and STD; specdiag also "
            "sigma_max with its proof, sigma_min, 19 quantiles and the stand-ins."
        )
    if not options.quick:
        deeper = network(56)
        start = time.perf_counter()
        ours(deeper)
        took = time.perf_counter() - start
        rows.append([f"ResNet-56, {len(deeper)} convolutions (random)", "specdiag layers", f"{took:.1f}"])
        lines.append(
            f"ResNet-56 / ResNet-20 = {took / statistics.median(times['specdiag layers']):.2f}"
            + (
                f"; ResNet-56 / sketch on ResNet-20 = {took / statistics.median(times['sketch, 12 nodes']):.2f} (goal under 4.5: "
                "three times the goal of ResNet-20)."
                if sketch is not None
                else "."
            )
        )
    found = {name: row.spectrum for name, row in zip(wanted, ours(), strict=True)}
    table = [accuracy(name, found[name], truth[name]) for name in wanted if name in truth]
    lines += (
        [
            "",
            markdown(
                ["layer", "sigma_max off", "sigma_std off", "estimated", "sigma_max covered", "std covered"],
                table,
            ),
        ]
        if table
        else []
    )
    return [markdown(["network", "what", "s"], rows), "", *lines]


def accuracy(name: str, found: object, truth: dict) -> list[str]:
    """One line: how far off, and whether the estimated error covers."""
    top, std = found.sigma_max, found.std
    return [
        name,
        f"{top.value / truth['sigma_max'] - 1:+.0e}",
        f"{std.value / truth['std'] - 1:+.0e}",
        f"{std.error / std.value:.0e}",
        "yes" if abs(top.value - truth["sigma_max"]) <= top.error else "no",
        "yes" if abs(std.value - truth["std"]) <= std.error else "no",
    ]


SECTIONS = {
    "circular": circular_section,
    "sums": sums_section,
    "proofs": proofs_section,
    "network": network_section,
    "tools": lambda options: tools_lines(),
}


def double(layer: Convolution) -> Convolution:
    """The layer in float64."""
    return convolution(
        layer.weight.double(), layer.size, stride=layer.stride, padding=[p[0] for p in layer.padding]
    )


def label(stencil: Stencil) -> str:
    """Channels, size and number of values."""
    return f"{stencil.kernel.shape[1]}x{stencil.kernel.shape[2]}@{stencil.axes[0].inputs} (n = {stencil.count:,})"


def milliseconds(seconds: list[float]) -> str:
    """Median in milliseconds."""
    return f"{1000 * statistics.median(seconds):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--section", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "layers-cpu.md")
    options = parser.parse_args()
    command = " ".join(["python benchmarks/layers.py", *sys.argv[1:]])
    for name in options.section or SECTIONS:
        start = time.perf_counter()
        lines = SECTIONS[name](options)
        head = [f"`{command}` on {machine()}", ""]
        if not CHECKPOINT.exists():
            head += ["No trained checkpoint at hand: random kernels stand in for trained ones.", ""]
        replace(options.out, "Spectra of convolutions", name, "\n".join([*head, *lines]))
        print("\n".join(lines), f"\n({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
