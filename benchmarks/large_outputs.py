"""The spectrum of networks with 1,000 outputs and 150,528 inputs, by every route: time, memory, agreement.

    python benchmarks/large_outputs.py [--only ROUTE ...] [--threads 2] [--out FILE]

Random weights (the last layer of a ViT drawn anew: torchvision starts it at zero), one image of noise, 224x224, CPU,
float32 unless said. Each route runs in a process of its own, whose peak of resident memory is reset before each phase.
Writes benchmarks/results/large-outputs-cpu.md, anew after each route.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _table import RESULTS, machine, markdown

from specdiag import plugins
from specdiag.loading.architectures import build
from specdiag.loading.datasets import Data
from specdiag.model import Model
from specdiag.options import build_options
from specdiag.runner import MemoryKeeper, Task, chunk_size, run_samples

# name: (network, options of spectrum, dtype, limit in MB, what the limit is on)
ROUTES: dict[str, tuple[str, dict[str, Any], str, int, str]] = {
    "resnet50 krylov": ("resnet50", {"method": "krylov", "top": 20}, "float32", 2000, "whole process"),
    "resnet50 stored": ("resnet50", {}, "float32", 4000, "whole process"),
    "resnet50 gram": ("resnet50", {"method": "gram"}, "float32", 700, "over one forward and backward"),
    "vit_b_16 krylov": ("vit_b_16", {"method": "krylov", "top": 20}, "float32", 0, ""),
    "resnet50 gram float64": (
        "resnet50",
        {"method": "gram"},
        "float64",
        700,
        "over one forward and backward",
    ),
    "vit_b_16 stored": ("vit_b_16", {}, "float32", 0, ""),
}


def peak(reset: bool = False) -> float:
    """Peak of resident memory in MB since the last reset."""
    status = Path("/proc/self/status").read_text()
    value = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return value / 1024


def child(route: str, folder: Path) -> None:
    """Run one route; write its values and figures into the folder."""
    network, given, dtype, _, _ = ROUTES[route]
    torch.manual_seed(0)
    module = build(f"torchvision:{network}")
    if network.startswith("vit"):
        # torchvision starts its last layer at zero, which would make every Jacobian zero
        torch.nn.init.normal_(module.heads.head.weight, std=0.02)
    model = Model(module, (3, 224, 224), dtype=getattr(torch, dtype))
    loading = peak(reset=True)
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    leaf = model.to_input(x).requires_grad_(True)
    out = model.forward(leaf)
    torch.autograd.grad(out, leaf, torch.ones_like(out))
    del out, leaf
    once = peak(reset=True)
    analyzer = plugins.load("analyzer", "spectrum")
    options = build_options(analyzer, given)
    data = Data(x.numpy(), None, np.arange(1), "test", "random", 1, "", 0.0, 1.0, 1000, ())
    keeper = MemoryKeeper()
    start = time.perf_counter()
    run_samples(Task(model, data, analyzer, options, 0, chunk_size(model, analyzer, options)), keeper)
    seconds = time.perf_counter() - start
    found = keeper.read(0)
    np.savez(
        folder / f"{route}.npz",
        values=found["singular_values"][0],
        error=found.get("error", np.zeros((1, 1)))[0],
    )
    figures = {"loading": loading, "once": once, "route": peak(), "seconds": seconds}
    (folder / f"{route}.json").write_text(json.dumps(figures))


def table(folder: Path) -> str:
    """The results so far."""
    rows = []
    for route, (network, given, _, limit, of) in ROUTES.items():
        if not (folder / f"{route}.json").exists():
            continue
        figures = json.loads((folder / f"{route}.json").read_text())
        stored = np.load(folder / f"{route}.npz")
        values, error = stored["values"], stored["error"]
        added = figures["route"] - figures["once"]
        whole = max(figures["loading"], figures["once"], figures["route"])
        held = added if of.startswith("over") else whole
        goal = f"{'yes' if held < limit else 'NO'}: {held:.0f} < {limit} MB {of}" if limit else ""
        agreement = ""
        if (folder / f"{network} stored.npz").exists() and given:
            reference = np.load(folder / f"{network} stored.npz")["values"][: len(values)]
            gap = np.abs(values - reference)
            agreement = (
                f"{(gap / reference).max():.1e} of each, {(gap / reference[0]).max():.1e} of the largest"
            )
        claimed = f"{(error / values).max():.1e}" if given else ""
        rows.append(
            [
                route,
                str(len(values)),
                f"{figures['seconds']:.0f}",
                f"{whole:.0f}",
                f"{added:.0f}",
                goal,
                agreement,
                claimed,
            ]
        )
    titles = [
        "route",
        "values",
        "seconds",
        "peak MB",
        "MB over one forward and backward",
        "goal met",
        "off the stored route by",
        "own error estimate, relative",
    ]
    return markdown(titles, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--only", nargs="*", default=list(ROUTES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "large-outputs-cpu.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        child(given.child[0], Path(given.child[1]))
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for route in given.only:
        command = [sys.executable, __file__, "--child", route, str(folder), "--threads", str(given.threads)]
        if subprocess.run(command, check=False).returncode:
            print(f"{route} failed", flush=True)
        text = f"# Spectrum of large outputs, {machine()}\n\nOne image, 1,000 outputs, 150,528 inputs.\n\n{table(folder)}\n"
        given.out.write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
