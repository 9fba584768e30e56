"""Train the sample checkpoints and write the table of README.md from what was measured.

    .venv/bin/python sample_checkpoints/make.py                  all of them, into this folder
    .venv/bin/python sample_checkpoints/make.py digits-standard  only these
    .venv/bin/python sample_checkpoints/make.py --check          train anew elsewhere and compare the bytes
    .venv/bin/python sample_checkpoints/make.py --choose         how the constants were chosen, on held-out training data

The same seed gives the same bytes on the same kind of processor with the same versions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specdiag.loading.checkpoints import read_checkpoint
from specdiag.training._loop import Progress
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig

HERE = Path(__file__).resolve().parent
EPS = 1.0
# the same for linf: eps d^(-1/2) with d = 64 (simongabriel2019, eq. 3)
LINF_EPS = 0.125
# roth2020 has 1.75 for images standardised one by one, whose values here have an STD of about 0.2
CIFAR_EPS = 0.35
COMMON: dict[str, Any] = {"attack_eps": EPS, "device": "cpu", "seed": 0}
INTRODUCTION = """# Sample checkpoints

Networks for scikit-learn's digits (8x8 grey images in [0, 1], 1,400 for training and 397 for testing),
architecture `cnn4` of width 16, made by

```
.venv/bin/python sample_checkpoints/make.py
```

from a fixed seed: the same versions on the same kind of processor give the same bytes. The table is written
by that command. Accuracies are shares of all 397 test samples, computed in float64; attacked means samples perturbed
{attack}.
At about eps {eps} `pgd-l2` fools almost all samples of the standard network. Each file carries these
figures with every setting of its training under `train` in its metadata.

"""
CIFAR_INTRODUCTION = """
And networks for CIFAR-10, architecture `cnn7` of width 16 on images standardised one by one, made by

```
.venv/bin/python sample_checkpoints/make.py --cifar10 cifar10.npz
```

where the file holds `x_train`, `y_train`, `x_test`, `y_test` of the data set. The budget is that of two processor
cores, not that of the papers: `cifar10-standard` is trained for 20 epochs, the others go on from it for 5 epochs on
20,000 images. Accuracies are shares of 2,000 test images; attacked means images perturbed
{attack}.

"""
HEAD = """| checkpoint | method | epochs | training eps | clean accuracy | attacked accuracy | attack | size |
|---|---|---|---|---|---|---|---|
"""


def recipe(
    method: str, options: Mapping[str, Any] | None = None, **settings: Any
) -> Callable[[Path, str], TrainConfig]:
    """A configuration that still needs to know where to write."""
    return lambda out, cifar: TrainConfig(
        method=method,
        out=out,
        options=options or {},
        settings=Settings(**{**COMMON, **settings}),
        arch="cnn4",
        arch_args={"width": 16},
        overwrite=True,
    )


def cifar_recipe(
    method: str, options: Mapping[str, Any] | None = None, start: str | None = None, **settings: Any
) -> Callable[[Path, str], TrainConfig]:
    """The same for cnn7 on CIFAR-10: `start` names the checkpoint beside `out` to go on from. An unfinished run goes on."""
    return lambda out, cifar: TrainConfig(
        method=method,
        out=out,
        data=cifar,
        options=options or {},
        settings=Settings(**{**COMMON, "attack_eps": CIFAR_EPS, "batch_size": 128, **settings}),
        arch=None if start else "cnn7",
        arch_args={} if start else {"width": 16},
        init=out.with_name(f"{start}.pt") if start else None,
    )


RECIPES = {
    "digits-standard": recipe("standard", epochs=30),
    "digits-adversarial": recipe("adversarial", {"norm": "l2", "eps": EPS}, epochs=30),
    "digits-dd-snr": recipe("dd-snr", {"eps": EPS, "lam": 0.3}, epochs=30),
    "digits-global-snr": recipe("global-snr", {"lam": 0.1}, epochs=30),
    "digits-fgm": recipe("fgm", {"eps": EPS}, epochs=30),
    "digits-pgm": recipe("pgm", {"norm": "l2", "eps": EPS}, epochs=30),
    "digits-wrm": recipe("wrm", {"penalty_weight": 1.0}, epochs=30),
    "digits-fgsm": recipe("fgsm", {"eps": LINF_EPS}, epochs=30, attack_eps=LINF_EPS),
    "digits-adversarial-linf": recipe(
        "adversarial", {"norm": "linf", "eps": LINF_EPS}, epochs=30, attack_eps=LINF_EPS
    ),
    "digits-gradient-penalty": recipe("gradient-penalty", {"eps": 1.0}, epochs=30),
    "digits-cross-lipschitz": recipe("cross-lipschitz", {"lam": 0.01}, epochs=30),
    "digits-gradient-norm": recipe("gradient-norm", {"lam": 0.1}, epochs=30),
    "digits-sgr": recipe("sgr", {"lam": 1.0}, epochs=30),
    "digits-spectral-normalisation": recipe("spectral-normalisation", {"beta": 1.0}, epochs=30),
    "digits-sv-clip": recipe("sv-clip", {"bound": 1.0}, epochs=30),
    "digits-random-labels": recipe(
        "standard", epochs=200, labels="random", weight_decay=0.0, validation=0, curve_samples=0
    ),
    "digits-random": recipe("standard", epochs=0, seed=1),
}
# how much clean accuracy on the held-out samples a constant may cost
LOSS = 0.015
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    "digits-dd-snr": ("lam", WEIGHTS),
    "digits-global-snr": ("lam", WEIGHTS),
    "digits-gradient-penalty": ("eps", (0.1, 0.3, 1.0, 3.0)),
    "digits-cross-lipschitz": ("lam", WEIGHTS),
    "digits-gradient-norm": ("lam", WEIGHTS),
    "digits-sgr": ("lam", WEIGHTS),
    "digits-wrm": ("penalty_weight", (0.2, 0.5, 1.0, 2.0, 5.0)),
    "digits-spectral-normalisation": ("beta", (1.0, 1.3, 1.6, 2.0)),
}
FINE: dict[str, Any] = {"start": "cifar10-standard", "epochs": 5, "train_samples": 20_000, "lr": 0.02}
CIFAR_RECIPES = {
    "cifar10-standard": cifar_recipe("standard", epochs=20, lr=0.1),
    "cifar10-adversarial": cifar_recipe("adversarial", {"norm": "l2", "eps": CIFAR_EPS, "steps": 5}, **FINE),
    "cifar10-dd-snr": cifar_recipe("dd-snr", {"eps": CIFAR_EPS, "lam": 0.2, "iterations": 2}, **FINE),
    "cifar10-global-snr": cifar_recipe("global-snr", {"lam": 3e-4}, **FINE),
}


ALL = {**RECIPES, **CIFAR_RECIPES}


def make(names: list[str], folder: Path, cifar: str = "") -> None:
    """Train `names` into `folder`; cifar: an .npz of the whole CIFAR-10."""
    for name in names:
        begun = time.perf_counter()
        path = train(ALL[name](folder / f"{name}.pt", cifar), _show)
        facts = read_checkpoint(path).metadata["train"]
        clean, attacked = facts["clean_accuracy"], facts["adversarial_accuracy"]
        seconds = time.perf_counter() - begun
        print(
            f"{name}: clean {clean:.2%}, attacked {attacked:.2%}, {path.stat().st_size:,} bytes, {seconds:.0f} s"
        )


def table(names: Iterable[str], folder: Path) -> tuple[str, str]:
    """Rows of those that have a checkpoint in `folder`, from the metadata; and the attack of the last one in words."""
    rows, words = [], ""
    for name in names:
        path = folder / f"{name}.pt"
        if not path.is_file():
            continue
        facts = read_checkpoint(path).metadata["train"]
        attack = facts["attack"]
        words = (
            f"by the attack named in the row, {attack['steps']} steps of 2 eps / {attack['steps']} from a random start, "
            "kept in [0, 1]"
        )
        tried = f"{attack['name']}, eps {attack['eps']:g}"
        eps = f"{facts['norm']} {facts['eps']:g}" if "eps" in facts else ""
        accuracies = f"{facts['clean_accuracy']:.2%} | {facts['adversarial_accuracy']:.2%}"
        size = f"{path.stat().st_size / 1000:.0f} kB"
        rows.append(
            f"| `{name}.pt` | {facts['method']} | {facts['epochs']} | {eps} | {accuracies} | {tried} | {size} |"
        )
    return "\n".join(rows) + "\n", words


def write_readme(folder: Path) -> None:
    """The tables of all checkpoints in `folder`."""
    rows, words = table(RECIPES, folder)
    text = INTRODUCTION.format(attack=words, eps=f"{EPS:g}") + HEAD + rows
    if any((folder / f"{name}.pt").is_file() for name in CIFAR_RECIPES):
        rows, words = table(CIFAR_RECIPES, folder)
        text += CIFAR_INTRODUCTION.format(attack=words) + HEAD + rows
    (folder / "README.md").write_text(text)


def choose(names: list[str]) -> None:
    """For every method with a constant: accuracies on the held-out training samples, and the value that is taken.

    It is the one with the highest attacked accuracy among those whose clean accuracy is within LOSS of the standard
    network's. No test sample is looked at.
    """
    with tempfile.TemporaryDirectory() as temporary:

        def held_out(name: str, **options: Any) -> tuple[float, float]:
            config = RECIPES[name](Path(temporary) / "candidate.pt", "")
            settings = replace(config.settings, test_samples=1)
            path = train(replace(config, options={**config.options, **options}, settings=settings), _show)
            curves = read_checkpoint(path).metadata["train"]["curves"]
            return curves["validation_accuracy"][-1], curves["validation_attacked_accuracy"][-1]

        least = held_out("digits-standard")[0] - LOSS
        for name in names:
            option, values = GRID[name]
            found = {value: held_out(name, **{option: value}) for value in values}
            for value, (clean, attacked) in found.items():
                print(f"{name} {option}={value:g}: clean {clean:.2%}, attacked {attacked:.2%}", flush=True)
            allowed = {value: pair[1] for value, pair in found.items() if pair[0] >= least}
            taken = max(allowed, key=lambda value: allowed[value]) if allowed else None
            print(f"{name}: {option}={taken}", flush=True)


def check(names: list[str]) -> int:
    """Train anew into a temporary folder; 1 where any byte differs from the file in this folder."""
    different = []
    with tempfile.TemporaryDirectory() as temporary:
        make(names, Path(temporary))
        for name in names:
            if (Path(temporary) / f"{name}.pt").read_bytes() != (HERE / f"{name}.pt").read_bytes():
                different.append(name)
    print(f"different bytes: {', '.join(different)}" if different else "all bytes are equal")
    return 1 if different else 0


def _show(progress: Progress) -> None:
    if progress.curves is not None and sys.stderr.isatty():
        print(
            f"\repoch {progress.epoch}/{progress.epochs} loss {progress.loss:.4f}", end="\r", file=sys.stderr
        )


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Train the sample checkpoints.")
    known = ", ".join(ALL)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"any of {known}; all of the digits by default"
    )
    parser.add_argument(
        "--cifar10", default="", metavar="FILE.npz", help="make those for CIFAR-10 from these data"
    )
    parser.add_argument("--check", action="store_true", help="train elsewhere and compare the bytes")
    parser.add_argument(
        "--choose", action="store_true", help="try the constants of the methods that have one"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ALL]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]}; there are {known}")
    names = arguments.names or list(CIFAR_RECIPES if arguments.cifar10 else RECIPES)
    if not arguments.cifar10 and any(name in CIFAR_RECIPES for name in names):
        parser.error("pass --cifar10 FILE.npz for the networks of CIFAR-10")
    if arguments.choose:
        choose([name for name in arguments.names or GRID if name in GRID])
        return 0
    if arguments.check:
        return check(names)
    make(names, HERE, arguments.cifar10)
    write_readme(HERE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
