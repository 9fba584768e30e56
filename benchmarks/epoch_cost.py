"""Seconds per epoch of every training method over standard training (farnia2019, Tables 2 and 3).

    python benchmarks/epoch_cost.py [--rounds 3] [--samples N] [--only digits,cnn7,alexnet] [--out FILE]

Writes benchmarks/results/epoch-cost.md. In every round each method trains anew for one epoch that is not counted and one
that is; ratios are medians over rounds of the two times of one round. Accuracies and checkpoints are outside the clock.
The colour images are random numbers, for what they show plays no part in the cost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _table import RESULTS, machine, markdown

from specdiag import plugins
from specdiag.schema import fields
from specdiag.training._loop import Progress
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig

# methods whose options change the cost: what the row says, the method, its options
VARIANTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("adversarial, sum-of-squares", "adversarial", {"attack_loss": "sum-of-squares"}),
    ("adversarial, --through-attack", "adversarial", {"through_attack": True}),
    ("global-snr, kernel", "global-snr", {"layer_norm": "kernel"}),
    ("dd-snr, eq. 8", "dd-snr", {"form": "jacobian"}),
    ("spectral-normalisation, kernel", "spectral-normalisation", {"layer_norm": "kernel"}),
    ("sgr, gradients", "sgr", {"source": "gradient"}),
    ("sgr, gradients, function", "sgr", {"source": "gradient", "covariance": "function"}),
    ("sgr, function", "sgr", {"covariance": "function"}),
)
# farnia2019, Table 2: what spectral normalisation adds to each kind of training
WITH_NORMALISATION = ("fgm", "pgm", "wrm")
SUFFIX = "+spectral-normalisation"
HELD_OUT = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """A network, the data it is trained on, and how many samples an epoch has."""

    name: str
    title: str
    arch: str
    arch_args: Mapping[str, Any]
    colour: bool
    samples: int


SETTINGS = (
    Setting("digits", "cnn4 of width 16 on digits", "cnn4", {"width": 16}, False, 640),
    Setting("cnn7", "cnn7 of width 16 on 3x32x32", "cnn7", {"width": 16}, True, 320),
    Setting("alexnet", "alexnet-zhang on 3x32x32", "alexnet-zhang", {}, True, 128),
)


def methods() -> list[tuple[str, str, Mapping[str, Any]]]:
    """Every row: its words, METHOD and options."""
    names = [name for name in plugins.names("training") if name != "standard"]
    rows: list[tuple[str, str, Mapping[str, Any]]] = [("standard", "standard", {})]
    rows += [(name, name, {}) for name in names]
    rows += [row for row in VARIANTS if _has(row[1], row[2])]
    rows += [(name + SUFFIX, name + SUFFIX, {}) for name in WITH_NORMALISATION]
    return sorted(rows, key=lambda row: (row[0] != "standard", row[0]))


def _has(method: str, options: Mapping[str, Any]) -> bool:
    known = {item.name for item in fields(plugins.load("training", method).options)}
    return set(options) <= known


def seconds(setting: Setting, method: str, options: Mapping[str, Any], data: str, samples: int) -> float:
    """Seconds of the steps of the second epoch."""
    last: list[float] = []

    def report(progress: Progress) -> None:
        if progress.epoch == 2 and progress.step == progress.steps and progress.curves is None:
            last.append(progress.seconds)

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            epochs=2,
            train_samples=samples + HELD_OUT,
            validation=HELD_OUT,
            curve_samples=0,
            test_samples=8,
            augment="none",
            lr=1e-3,
            device="cpu",
        )
        config = TrainConfig(
            method=method,
            out=Path(folder) / "model.pt",
            data=data,
            options=options,
            settings=settings,
            arch=setting.arch,
            arch_args=dict(setting.arch_args),
        )
        train(config, report)
    return last[0]


def images(folder: Path, samples: int) -> str:
    """A file of random colour images with labels, in both splits."""
    rng = np.random.default_rng(0)
    count = samples + HELD_OUT
    x = rng.random((count, 3, 32, 32), dtype=np.float32)
    path = folder / "images.npz"
    y = np.arange(count) % 10
    np.savez(path, x_train=x, y_train=y, x_test=x[:HELD_OUT], y_test=y[:HELD_OUT])
    return str(path)


def timed(setting: Setting, rounds: int, samples: int, say: Callable[[str], None]) -> str:
    """The table of one setting."""
    rows = methods()
    times: dict[str, list[float]] = {words: [] for words, _, _ in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = images(Path(folder), samples) if setting.colour else "digits"
        for number in range(rounds):
            for words, method, options in rows:
                times[words].append(seconds(setting, method, options, data, samples))
            say(f"{setting.name}: round {number + 1} of {rounds}")

    def ratio(slow: str, fast: str) -> str:
        pairs = zip(times[slow], times[fast], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}"

    cells = []
    for words, _, _ in rows:
        without = words.removesuffix(SUFFIX)
        added = ratio(words, without) if words.endswith(SUFFIX) and without in times else ""
        if words == "spectral-normalisation":
            added = ratio(words, "standard")
        cells.append([words, f"{statistics.median(times[words]):.3g}", ratio(words, "standard"), added])
    steps = samples // Settings().batch_size
    table = markdown(["method", "seconds per epoch", "over standard", "normalised over not"], cells)
    return f"## {setting.title}\n\nAn epoch is {steps} steps of {Settings().batch_size} samples.\n\n{table}\n"


def main() -> None:
    """Time and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, help="samples of an epoch, in place of those of each setting")
    parser.add_argument("--only", default=",".join(setting.name for setting in SETTINGS))
    parser.add_argument("--out", type=Path, default=RESULTS / "epoch-cost.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [setting for setting in SETTINGS if setting.name in given.only.split(",")]
    parts = [
        timed(setting, given.rounds, given.samples or setting.samples, lambda line: print(line, flush=True))
        for setting in chosen
    ]
    head = (
        f"# Cost of an epoch, {machine()}\n\nMedians of {given.rounds} interleaved rounds, attacks and iterations at "
        "their defaults. The last column is what spectral normalisation adds to a kind of training.\n"
    )
    given.out.write_text("\n".join([head, *parts]))
    print(given.out.read_text())


if __name__ == "__main__":
    main()
