"""False alarms and misses of a gate against a baseline, by the code that judges builds.

    python benchmarks/gate_statistics.py [--results FILE.h5] [--trials 2000] [--metric spectrum.sigma_max_mean]

From one stored run of 2,000 images (without --results: one is made, of digits shifted by up to one pixel), each trial
draws 200 for the baseline and 200 others for the build:

- false alarms: nothing changed, other samples, `max_increase = 0`: the share of trials that fail (at most 1.7 %);
- misses, paired: the same samples, each value times 1.05 exp(0.1 g), g standard normal: the share that fails (at least 95 %);
- for comparison, the same rise on other samples, where the comparison is unpaired.

Writes benchmarks/results/gate-statistics.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _table import RESULTS, machine, markdown

from specdiag import plugins
from specdiag.gate.judge import judge
from specdiag.gate.observations import Observation, observe
from specdiag.gate.rules import read_rules
from specdiag.store import read_group

IMAGES, DRAW = 2000, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="stored run to draw from")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--metric", default="spectrum.sigma_max_mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "gate-statistics.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.results or stored_run(Path(folder))
        whole = observation(path, options.metric)
    assert whole.values is not None
    count = len(whole.values)
    print(f"{options.metric} of {path.name}: {count} images, mean {whole.value:.5g}", flush=True)
    start = time.perf_counter()
    rates = trials(whole, options.trials, options.seed)
    seconds = time.perf_counter() - start
    rows = [
        ["nothing changed, other samples: fails", f"{100 * rates['alarm']:.2f} %", "at most 1.7 %"],
        ["nothing changed, other samples: passes", f"{100 * rates['quiet']:.2f} %", ""],
        ["5 % rise with noise, same samples: fails", f"{100 * rates['paired']:.2f} %", "at least 95 %"],
        ["5 % rise with noise, other samples: fails", f"{100 * rates['unpaired']:.2f} %", ""],
        ["smallest excess shown, same samples (median)", f"{100 * rates['paired_detectable']:.2f} %", ""],
        ["smallest excess shown, other samples (median)", f"{100 * rates['unpaired_detectable']:.2f} %", ""],
    ]
    text = "\n".join(
        [
            f"`{options.metric}`, {count} images, disjoint draws of {DRAW}, {options.trials} trials, `max_increase = 0`, "
            f"98 % interval of 10,000 resamples; {1000 * seconds / options.trials:.0f} ms a trial (three comparisons).",
            "",
            markdown(["what", "share of trials", "wanted"], rows),
            "",
            machine(),
            "",
        ]
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    sys.exit(0 if rates["alarm"] <= 0.017 and rates["paired"] >= 0.95 else 1)


def stored_run(folder: Path) -> Path:
    """A run of `spectrum` over 2,000 digits, shifted by up to a pixel each way."""
    from specdiag.api import load_data

    data = [load_data("digits", split=split, samples=None) for split in ("test", "train")]
    images = np.concatenate([part.x for part in data])
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    x = np.concatenate([np.roll(images, shift, (2, 3)) for shift in shifts])[:IMAGES]
    np.savez(folder / "images.npz", x=x.astype(np.float32))
    checkpoint = Path(__file__).parent.parent / "sample_checkpoints" / "digits-standard.pt"
    command = [sys.executable, "-m", "specdiag", "spectrum", checkpoint, "--data", folder / "images.npz"]
    more = ["--layout", "nchw", "--samples", IMAGES, "--out", folder, "--figure", "none", "--quiet"]
    subprocess.run([str(part) for part in [*command, *more]], check=True)
    return folder / "digits-standard.h5"


def observation(path: Path, metric: str) -> Observation:
    """The metric with its values over samples."""
    analyzer, _, name = metric.partition(".")
    found = observe("model", read_group(path, analyzer), plugins.load("analyzer", analyzer))
    return next(entry for entry in found if entry.metric == name and entry.label is None)


def part(whole: Observation, places: Any, values: Any, *, seed: int = 0) -> Observation:
    """The observation that a run on some of the images would have given, with these values."""
    settings = {**whole.origin.settings, "seed": seed}
    origin = replace(whole.origin, settings=settings, index=tuple(int(place) for place in places))
    origin = replace(origin, splits=("test",) * len(places))
    return replace(whole, origin=origin, values=values, value=float(values.mean()), n=len(values), excluded=0)


def trials(whole: Observation, count: int, seed: int) -> dict[str, float]:
    """Rates over the trials."""
    (rule,) = read_rules([{"metric": f"*.{whole.metric}", "max_increase": "0%"}], "baseline.json")
    assert whole.values is not None
    assert whole.reduce == "mean"
    everything, rng = whole.values, np.random.default_rng(seed)
    tally = dict.fromkeys(("alarm", "quiet", "paired", "unpaired"), 0)
    detectable: dict[str, list[float]] = {"paired": [], "unpaired": []}
    for trial in range(count):
        order = rng.permutation(len(everything))
        old, new = order[:DRAW], order[DRAW : 2 * DRAW]
        before = part(whole, old, everything[old])
        baseline = {"baseline.json": {before.key: before}}
        rise = 1.05 * np.exp(0.1 * rng.standard_normal(DRAW))
        (same,) = judge([rule], [part(whole, new, everything[new], seed=1)], baseline)
        (paired,) = judge([rule], [part(whole, old, everything[old] * rise)], baseline)
        (unpaired,) = judge([rule], [part(whole, new, everything[new] * rise, seed=1)], baseline)
        assert (same.pairing, paired.pairing, unpaired.pairing) == ("unpaired", "paired", "unpaired")
        tally["alarm"] += same.outcome == "fail"
        tally["quiet"] += same.outcome == "pass"
        tally["paired"] += paired.outcome == "fail"
        tally["unpaired"] += unpaired.outcome == "fail"
        detectable["paired"].append(paired.detectable)
        detectable["unpaired"].append(unpaired.detectable)
        if (trial + 1) % 200 == 0:
            print(f"{trial + 1} trials: {tally}", flush=True)
    rates = {name: number / count for name, number in tally.items()}
    return rates | {f"{name}_detectable": float(np.median(found)) for name, found in detectable.items()}


if __name__ == "__main__":
    main()
