"""The spectrum beside the ways a user would otherwise take, interleaved in one run.

    python benchmarks/spectrum.py [--device cpu|cuda] [--rounds 5] [--samples 64] [--out FILE] [--no-memory]

Writes benchmarks/results/spectrum-DEVICE.md. Other ways are timed with the model as loaded (parameters ask for gradients,
which is what their users get) and again with it frozen. The loop over samples and the regression recipe are timed on a
few samples and scaled up to all of them; the table says so.
"""

from __future__ import annotations

import argparse
import copy
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _table import RESULTS, interleaved, machine, markdown, ratio
from torch.func import jacrev, vmap

from specdiag import plugins
from specdiag.loading.architectures import build
from specdiag.loading.datasets import Data
from specdiag.model import Model, Normalisation
from specdiag.options import build_options
from specdiag.runner import MemoryKeeper, Task, chunk_size, run_samples

FORWARDS = 3500
CHUNKS = (4, 8, 16)
LOOPED = 16
STATES = ("as loaded", "frozen")
MAPPED, WHOLE, LOOP, RECIPE = (
    "vmap(jacrev), best chunk",
    "vmap(jacrev), no chunks",
    "functional.jacobian loop",
    "regression recipe (A.5)",
)
GOALS = {
    MAPPED: "at least 1.4",
    WHOLE: "at least 3",
    LOOP: "at least 6",
    RECIPE: "at least 1,000",
    "floor": "at least 0.87",
}


def trained_like(network: torch.nn.Module) -> torch.nn.Module:
    """BatchNorm statistics away from their start, as in a trained network."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return network


def contenders(
    network: torch.nn.Module, x: torch.Tensor
) -> tuple[dict[str, Callable[[], object]], Callable[[], object]]:
    """What is timed in turn, and the regression recipe on one sample."""
    device = x.device
    loaded = copy.deepcopy(network).eval().requires_grad_(True).to(device)
    frozen = copy.deepcopy(loaded).requires_grad_(False)
    normalisation = Normalisation("channel", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model = Model(copy.deepcopy(network), (3, 32, 32), normalisation=normalisation, device=str(device))
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (normalisation.mean, normalisation.std)
    )
    analyzer = plugins.load("analyzer", "spectrum")
    options = build_options(analyzer, {})
    host = x.cpu().numpy()
    data = Data(host, None, np.arange(len(x)), "test", "random", len(x), "", 0.0, 1.0, 10, ())
    task = Task(model, data, analyzer, options, 0, chunk_size(model, analyzer, options))
    entered = model.to_input(x)

    def ours() -> None:
        run_samples(task, MemoryKeeper())

    def floor() -> None:
        for start in range(0, len(x), task.chunk):
            part = entered[start : start + task.chunk]
            leaf = part.clone(memory_format=torch.preserve_format).requires_grad_(True)
            out = model.fast((leaf - mean) / std)
            for _ in range(out.shape[1]):
                torch.autograd.grad(out, leaf, torch.ones_like(out), retain_graph=True)

    def mapped(plain: torch.nn.Module, chunk: int | None) -> Callable[[], object]:
        def one(sample: torch.Tensor) -> torch.Tensor:
            return plain((sample[None] - mean) / std)[0]

        return lambda: torch.linalg.svdvals(vmap(jacrev(one), chunk_size=chunk)(x))

    def loop(plain: torch.nn.Module) -> Callable[[], object]:
        def run() -> None:
            for sample in x[:LOOPED]:
                jacobian = torch.autograd.functional.jacobian(
                    lambda z: plain((z - mean) / std)[0], sample[None]
                )
                torch.linalg.svdvals(jacobian.flatten(1))

        return run

    def recipe() -> None:
        steps = 0.01 * torch.randn(FORWARDS, *x.shape[1:], device=device)
        with torch.no_grad():
            outputs = torch.cat([frozen((x[:1] + part - mean) / std) for part in steps.split(256)])
        design = torch.cat([(x[:1] + steps).flatten(1), torch.ones(FORWARDS, 1, device=device)], 1)
        weight = torch.linalg.pinv(design) @ outputs
        torch.linalg.svdvals(weight[:-1].T)

    runs: dict[str, Callable[[], object]] = {"specdiag": ours, "floor": floor}
    for state, plain in zip(STATES, (loaded, frozen), strict=True):
        runs |= {f"chunk {chunk}, {state}": mapped(plain, chunk) for chunk in CHUNKS}
        runs |= {f"{WHOLE}, {state}": mapped(plain, None), f"{LOOP}, {state}": loop(plain)}
    return runs, recipe


def compare(name: str, network: torch.nn.Module, x: torch.Tensor, rounds: int) -> str:
    runs, recipe = contenders(network, x)
    times = interleaved(runs, rounds, x.device)
    rare = interleaved({"specdiag": runs["specdiag"], RECIPE: recipe}, 1, x.device)

    def row(label: str, known: dict[str, list[float]], source: str, factor: float, goal: str) -> list[str]:
        speed = factor * ratio(known, source, "specdiag")
        return [label, f"{1e3 * factor * float(np.median(known[source])) / len(x):.3g}", f"{speed:.3g}", goal]

    rows = [row("specdiag", times, "specdiag", 1, ""), row("floor", times, "floor", 1, GOALS["floor"])]
    for state in STATES:
        best = min(
            (f"chunk {chunk}, {state}" for chunk in CHUNKS), key=lambda key: float(np.median(times[key]))
        )
        rows += [
            row(f"{MAPPED} ({best})", times, best, 1, GOALS[MAPPED]),
            row(f"{WHOLE}, {state}", times, f"{WHOLE}, {state}", 1, GOALS[WHOLE]),
            row(
                f"{LOOP}, {state} ({LOOPED} samples)", times, f"{LOOP}, {state}", len(x) / LOOPED, GOALS[LOOP]
            ),
        ]
    rows.append(row(f"{RECIPE} (1 sample)", rare, RECIPE, len(x), GOALS[RECIPE]))
    titles = ["way", "ms per sample", "time over specdiag's", "goal"]
    return f"## {name}, {len(x)} samples\n\n" + markdown(titles, rows)


def memory(samples: int, folder: Path) -> float:
    """Peak resident memory in MB of the command over so many samples of 3x32x32."""
    data = folder / "many.npz"
    if not data.exists():
        generator = np.random.default_rng(0)
        np.savez(
            data,
            x=generator.integers(0, 256, (10_000, 32, 32, 3), np.uint8),
            y=generator.integers(0, 10, 10_000),
        )
    code = (
        "import sys; from specdiag.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        # the peak that getrusage gives is at least that of the process that started this one
        "print('PEAK', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    flags = [
        "--arch",
        "lenet",
        "--arch-arg",
        "channels=3",
        "--arch-arg",
        "size=32",
        "--data",
        str(data),
        "--normalise",
        "none",
        "--figure",
        "none",
        "--device",
        "cpu",
    ]
    flags += ["--samples", str(samples), "--out", str(folder / str(samples)), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, "spectrum", str(folder / "net.pt"), *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"PEAK (\d+)", done.stdout)
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-memory", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    x = torch.rand(given.samples, 3, 32, 32).to(device)
    parts = [
        f"# Spectrum, {machine(device)}\n\nMedians of {given.rounds} interleaved rounds; times over specdiag's in the same round."
    ]
    for name, spec, arguments in (("ResNet-20", "resnet20", {}), ("cnn7 width 32", "cnn7", {"width": 32})):
        parts.append(compare(name, trained_like(build(spec, arguments)), x, given.rounds))
        print(parts[-1], flush=True)
    if not given.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(build("lenet", {"channels": 3, "size": 32}).state_dict(), Path(folder) / "net.pt")
            few, many = (memory(count, Path(folder)) for count in (200, 10_000))
        parts.append(
            f"## Memory\n\nPeak of the whole process: {few:.0f} MB for 200 samples of 3x32x32, {many:.0f} MB for 10,000: "
            f"{many - few:.0f} MB more (goal: under 200)."
        )
        print(parts[-1])
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device).lower().replace(" ", "-")
    target = given.out or RESULTS / f"spectrum-{name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(parts) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
