"""pgd-l2 at 10 steps on a ResNet-20 beside foolbox and torchattacks, speed and strength.

    python benchmarks/attacks.py speed      samples per second, interleaved rounds
    python benchmarks/attacks.py strength   robust accuracy on 1,000 images, 3 seeds, float32 and float64

Each writes its part of benchmarks/results/attacks-cpu.md and keeps the other. Threads are torch's default unless --threads
is given. Needs the shared assets (SPECDIAG_ASSETS, default ../shared beside the checkout), foolbox, and torchattacks where
installed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _sections import replace
from _table import RESULTS, interleaved, machine, markdown, ratio
from torch import nn

from specdiag.attacks.deepfool import DeepFool
from specdiag.attacks.pgd_l2 import PgdL2
from specdiag.attacks.pgd_linf import PgdLinf
from specdiag.loading import architectures
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.model import Model, Normalisation
from specdiag.sampling import Batch, Draws

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", ROOT.parent / "shared"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS = 10
OWN, ONLY = "specdiag pgd-l2", "specdiag pgd-l2, accuracy only"
GOALS = {"free": "at least 1.8", "frozen": "at least 1.2, aim for 1.3"}


class Scaled(nn.Module):
    """The network as users of other libraries wrap it: normalisation first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


def loaded() -> nn.Module:
    checkpoint = read_checkpoint(ASSETS / "checkpoints" / "cifar10-resnet20.th")
    return architectures.network_for(checkpoint.tensors, "resnet20", {})[0].eval()


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = np.load(ASSETS / "data" / "cifar10-test-1k.npz")
    x = found["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return torch.from_numpy(x).contiguous(), torch.from_numpy(found["y"][:count].astype(np.int64))


def wrapped(dtype: torch.dtype = torch.float32) -> Model:
    return Model(loaded(), (3, 32, 32), normalisation=Normalisation("channel", MEAN, STD), dtype=dtype)


def batch(model: Model, x: torch.Tensor, y: torch.Tensor, seed: int = 0, first: int = 0) -> Batch:
    facts = {"mean_norm": 28.0, "low": 0.0, "high": 1.0}
    return Batch(model.to_input(x), y, np.arange(first, first + len(x)), "test", Draws(seed), facts)


def speed(count: int, rounds: int, eps: float) -> str:
    """Table of samples per second, ours beside the other libraries with free and with frozen parameters."""
    import foolbox

    x, y = images(count)
    model = wrapped()
    own = batch(model, x, y)
    attack = PgdL2(eps=eps, steps=STEPS, clip=True)
    free, frozen = Scaled(loaded()).eval(), Scaled(loaded()).eval()
    frozen.requires_grad_(False)
    free.requires_grad_(True)
    foreign = foolbox.attacks.L2PGD(rel_stepsize=2 / STEPS, steps=STEPS, random_start=True)

    def with_foolbox(network: nn.Module) -> Callable[[], object]:
        inner = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        criterion = foolbox.criteria.Misclassification(y)
        # the attack's own loop, without the success check that its caller adds
        return lambda: foreign.run(inner, x, criterion, epsilon=eps)

    runs: dict[str, Callable[[], object]] = {
        OWN: lambda: attack.perturb(model, own),
        ONLY: lambda: attack.run(model, own, stop=True),
        "foolbox, parameters free": with_foolbox(free),
        "foolbox, parameters frozen": with_foolbox(frozen),
    }
    missing = ""
    try:
        torchattacks = importlib.import_module("torchattacks")
    except ImportError:
        missing = "\n\ntorchattacks is not installed: left out."
    else:
        for name, network in (("free", free), ("frozen", frozen)):
            theirs = torchattacks.PGDL2(
                network, eps=eps, alpha=2 * eps / STEPS, steps=STEPS, random_start=True
            )
            runs[f"torchattacks, parameters {name}"] = lambda theirs=theirs: theirs(x, y)
    times = interleaved(runs, rounds)
    rows = [
        [
            name,
            f"{count / statistics.median(values):.1f}",
            "" if name in (OWN, ONLY) else f"{ratio(times, name, OWN):.2f}",
            "" if name == ONLY else f"{ratio(times, name, ONLY):.2f}",
            GOALS.get(name.split()[-1], ""),
        ]
        for name, values in times.items()
    ]
    titles = ["way", "samples/s", "pgd-l2 is faster by", "accuracy only is faster by", "goal for pgd-l2"]
    intro = (
        f"{count} images, eps {eps:g}, {STEPS} steps, ResNet-20, {rounds} interleaved rounds; ratios are medians over rounds. "
        "Free: parameters ask for gradients, as a model does that was just loaded; specdiag freezes what it loads."
    )
    return f"{intro}\n\n{markdown(titles, rows)}{missing}"


def strength(count: int, seeds: int, dtypes: tuple[str, ...]) -> str:
    """Table of robust accuracy of ours and foolbox's, judged by the same network, and deepfool's median norms."""
    import foolbox

    x, y = images(count)
    settings = (
        ("pgd-l2", PgdL2, foolbox.attacks.L2PGD, 0.1),
        ("pgd-linf", PgdLinf, foolbox.attacks.LinfPGD, 1 / 255),
    )
    table = []
    for name in dtypes:
        dtype = getattr(torch, name)
        model = wrapped(dtype)
        network = Scaled(loaded()).eval().requires_grad_(False).to(dtype)
        inner = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        for label, kind, other, eps in settings:
            ours, theirs = [], []
            for seed in range(seeds):
                torch.manual_seed(seed)
                foreign = other(rel_stepsize=2 / STEPS, steps=STEPS, random_start=True)
                kept = [0, 0]
                for first in range(0, count, 100):
                    rows = slice(first, first + 100)
                    part = batch(model, x[rows], y[rows], seed, first)
                    found = kind(eps=eps, steps=STEPS, clip=True).perturb(model, part)
                    criterion = foolbox.criteria.Misclassification(y[rows])
                    alien = foreign.run(inner, x[rows].to(dtype), criterion, epsilon=eps)
                    # both judged by the same network in float64's own precision
                    kept[0] += int((model.logits(found).argmax(1) == y[rows]).sum())
                    kept[1] += int((model.logits(model.to_input(alien)).argmax(1) == y[rows]).sum())
                ours.append(100 * kept[0] / count)
                theirs.append(100 * kept[1] / count)
            gap = statistics.mean(ours) - statistics.mean(theirs)
            table.append(
                [
                    name,
                    f"{label}, eps {eps:.4g}",
                    f"{statistics.mean(ours):.2f}",
                    f"{statistics.mean(theirs):.2f}",
                    f"{gap:+.2f}",
                    "at most +1" if name == "float32" else "within 1",
                ]
            )
            print(table[-1], ours, theirs, flush=True)
    model, network = wrapped(), Scaled(loaded()).eval().requires_grad_(False)
    inner = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    few, labels = x[:200], y[:200]
    found = DeepFool(clip=True).perturb(model, batch(model, few, labels))
    alien = foolbox.attacks.L2DeepFoolAttack().run(inner, few, foolbox.criteria.Misclassification(labels))
    lengths = [float((v - few).flatten(1).norm(dim=1).median()) for v in (found, alien)]
    titles = ["dtype", "attack", "specdiag %", "foolbox %", "difference", "goal"]
    return (
        f"{count} images, {STEPS} steps, robust accuracy, mean of {seeds} seeds, clipped to [0, 1].\n\n"
        f"{markdown(titles, table)}\n\ndeepfool, {len(few)} images, float32: median norm {lengths[0]:.5f}, foolbox "
        f"{lengths[1]:.5f}: {100 * (lengths[0] / lengths[1] - 1):+.2f} % (goal: within 2 %)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "strength"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eps", type=float, default=0.25)
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--threads", type=int, help="torch's default where left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks-cpu.md")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    if given.what == "speed":
        text = speed(given.images or 64, given.rounds, given.eps)
    else:
        text = strength(given.images or 1000, given.seeds, tuple(given.dtypes.split(",")))
    command = " ".join(["python benchmarks/attacks.py", *sys.argv[1:]])
    text = f"`{command}` on {machine()}\n\n{text}"
    print(text)
    replace(given.out, "Attacks beside other libraries", given.what, text)


if __name__ == "__main__":
    main()
