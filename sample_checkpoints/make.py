"""Train the sample checkpoints and write the table of README.md from what was measured.

    .venv/bin/python sample_checkpoints/make.py                  all of them, into this folder
    .venv/bin/python sample_checkpoints/make.py digits-standard  only these
    .venv/bin/python sample_checkpoints/make.py --check          train anew elsewhere and compare the bytes

The same seed gives the same bytes on the same kind of processor with the same versions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specdiag.loading.checkpoints import read_checkpoint
from specdiag.training._loop import Progress
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig

HERE = Path(__file__).resolve().parent
EPS = 1.0
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
At about eps {eps} this attack fools almost all samples of the standard network. Each file carries these
figures with every setting of its training under `train` in its metadata.

| checkpoint | method | epochs | training eps | clean accuracy | attacked accuracy | size |
|---|---|---|---|---|---|---|
"""


def recipe(
    method: str, options: Mapping[str, Any] | None = None, **settings: Any
) -> Callable[[Path], TrainConfig]:
    """A configuration that still needs to know where to write."""
    return lambda out: TrainConfig(
        method=method,
        out=out,
        options=options or {},
        settings=Settings(**{**COMMON, **settings}),
        arch="cnn4",
        arch_args={"width": 16},
        overwrite=True,
    )


RECIPES = {
    "digits-standard": recipe("standard", epochs=30),
    "digits-adversarial": recipe("adversarial", {"norm": "l2", "eps": EPS}, epochs=30),
    "digits-dd-snr": recipe("dd-snr", {"eps": EPS, "lam": 0.3}, epochs=30),
    "digits-global-snr": recipe("global-snr", {"lam": 0.1}, epochs=30),
    "digits-random": recipe("standard", epochs=0, seed=1),
}


def make(names: list[str], folder: Path) -> None:
    """Train `names` into `folder`."""
    for name in names:
        begun = time.perf_counter()
        path = train(RECIPES[name](folder / f"{name}.pt"), _show)
        facts = read_checkpoint(path).metadata["train"]
        clean, attacked = facts["clean_accuracy"], facts["adversarial_accuracy"]
        seconds = time.perf_counter() - begun
        print(
            f"{name}: clean {clean:.2%}, attacked {attacked:.2%}, {path.stat().st_size:,} bytes, {seconds:.0f} s"
        )


def write_readme(folder: Path) -> None:
    """The table of all recipes that have a checkpoint in `folder`, from the checkpoints' metadata."""
    rows, attack = [], {}
    for name in RECIPES:
        path = folder / f"{name}.pt"
        if not path.is_file():
            continue
        facts = read_checkpoint(path).metadata["train"]
        attack = facts["attack"]
        eps = f"{facts['norm']} {facts['eps']:g}" if "eps" in facts else ""
        accuracies = f"{facts['clean_accuracy']:.2%} | {facts['adversarial_accuracy']:.2%}"
        size = f"{path.stat().st_size / 1000:.0f} kB"
        rows.append(
            f"| `{name}.pt` | {facts['method']} | {facts['epochs']} | {eps} | {accuracies} | {size} |"
        )
    words = (
        f"by `{attack['name']}` with eps {attack['eps']:g}, {attack['steps']} steps of "
        f"{attack['alpha']:g} from a random start, kept in [0, 1]"
    )
    text = INTRODUCTION.format(attack=words, eps=f"{EPS:g}") + "\n".join(rows) + "\n"
    (folder / "README.md").write_text(text)


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
    known = ", ".join(RECIPES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {known}; all by default")
    parser.add_argument("--check", action="store_true", help="train elsewhere and compare the bytes")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]}; there are {known}")
    names = arguments.names or list(RECIPES)
    if arguments.check:
        return check(names)
    make(names, HERE)
    write_readme(HERE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
