"""Every layer of the CIFAR ResNet-20 as `layers` sees it against its dense truth.

    python benchmarks/layer_check.py [--threads N] [--out FILE]

Writes benchmarks/results/layer-truth.md: sigma_max within 1e-5, sigma_std within 1e-3, and how often the error estimates
cover the true error (goal: 95 %). The truth of the convolutions is benchmarks/results/layer-truth.json
(benchmarks/layer_truth.py, an hour); that of the linear layer is computed here. Half a minute. Exit code 1 where a goal is
missed or a layer has no truth yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _layer_networks import CHECKPOINT, network, recorded
from _table import RESULTS, machine, markdown

from specdiag.analyzers._layers_rows import Row, rows_of
from specdiag.analyzers._layers_uses import Use
from specdiag.analyzers.layers import SHARES
from specdiag.linalg.estimate import Estimate
from specdiag.linalg.spectra import Settings

ROUNDING = 1e-9
"""What the truth itself may be off by, relative to sigma_max: it comes from Gram matrices."""


def uses() -> dict[str, Use]:
    """All convolutions and the linear layer."""
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["state_dict"]
    found = {
        name: Use(name, (name,), layer=layer, kernel=layer.weight.flatten(1))
        for name, layer in network().items()
    }
    weight = state["module.linear.weight"]
    found["linear"] = Use("linear", ("linear",), matrix=weight, kernel=weight)
    return found


def truths(layers: dict[str, Use]) -> dict[str, dict]:
    """Numbers by layer: those on file, and the linear layer's from its dense SVD."""
    known = recorded()
    matrix = layers["linear"].matrix
    assert matrix is not None
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    known["linear"] = {
        "count": len(values),
        "sigma_max": values[0],
        "sigma_min": values[-1],
        "mean": values.mean(),
        "std": values.std(),
        "quantiles": list(np.quantile(values, np.linspace(0, 1, 1001))),
    }
    return known


def covers(estimate: Estimate, truth: float | None, slack: float) -> bool | None:
    """Whether the error holds the truth; None where either is not known."""
    if truth is None or not np.isfinite(estimate.value) or not np.isfinite(estimate.error):
        return None
    return bool(abs(estimate.value - truth) <= estimate.error + slack)


def line(name: str, row: Row, truth: dict, counts: dict[str, list[bool]]) -> tuple[list[str], bool]:
    """One line of the table, and whether both goals are met; adds to the counts of covered errors."""
    found = row.spectrum
    assert found is not None
    slack = ROUNDING * truth["sigma_max"]
    pairs = {
        "sigma_max": [(found.sigma_max, truth["sigma_max"])],
        "sigma_std": [(found.std, truth["std"])],
        "sigma_mean": [(found.mean, truth["mean"])],
        # the Gram matrices of the truth are not to be trusted below 1e-6 of the largest value
        "sigma_min": [(found.sigma_min, truth["sigma_min"])]
        if (truth["sigma_min"] or 0) > 1e-6 * truth["sigma_max"]
        else [],
        "quantiles": [
            (estimate, truth["quantiles"][round(1000 * share)])
            for share, estimate in zip(SHARES, found.quantiles, strict=True)
        ],
    }
    for kind, entries in pairs.items():
        counts[kind] += [held for entry in entries if (held := covers(*entry, slack)) is not None]
    off = found.sigma_max.value / truth["sigma_max"] - 1, found.std.value / truth["std"] - 1
    cells = [
        name,
        f"{truth['count']:,}",
        found.method,
        f"{truth['sigma_max']:.6g}",
        f"{off[0]:+.1e}",
        f"{found.sigma_max.error / truth['sigma_max']:.0e}",
        f"{truth['std']:.6g}",
        f"{off[1]:+.1e}",
        f"{found.std.error / truth['std']:.0e}",
    ]
    return cells, abs(off[0]) <= 1e-5 and abs(off[1]) <= 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="torch's default where left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "layer-truth.md")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    layers = uses()
    known = truths(layers)
    start = time.perf_counter()
    rows = dict(zip(layers, rows_of(list(layers.values()), Settings(shares=SHARES)), strict=True))
    took = time.perf_counter() - start
    counts: dict[str, list[bool]] = {
        kind: [] for kind in ("sigma_max", "sigma_std", "sigma_mean", "sigma_min", "quantiles")
    }
    table, missed = [], []
    for name in layers:
        if name not in known:
            continue
        cells, met = line(name, rows[name], known[name], counts)
        table.append(cells)
        missed += [] if met else [name]
    without = [name for name in layers if name not in known]
    titles = ["layer", "n", "method", "sigma_max", "off", "its error", "sigma_std", "off", "its error"]
    main_counts = counts["sigma_max"] + counts["sigma_std"]
    share = float(np.mean(main_counts))
    text = "\n\n".join(
        [
            "# Layers of the CIFAR ResNet-20 against their dense truth",
            f"`{' '.join(['python benchmarks/layer_check.py', *sys.argv[1:]])}` on {machine()}; all layers took {took:.1f} s. "
            "Errors are relative. Goals: sigma_max within 1e-5, sigma_std within 1e-3, errors cover in at least 95 %.",
            markdown(titles, table),
            markdown(
                ["estimate", "errors that cover the truth", "of"],
                [[kind, str(sum(held)), str(len(held))] for kind, held in counts.items()],
            ),
            f"Goals missed: {', '.join(missed) or 'none'}. sigma_max and sigma_std covered: {100 * share:.1f} %. "
            f"Layers without a truth yet: {', '.join(without) or 'none'}.",
        ]
    )
    print(text)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n")
    raise SystemExit(1 if missed or without or share < 0.95 else 0)


if __name__ == "__main__":
    main()
