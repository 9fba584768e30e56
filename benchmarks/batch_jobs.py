"""A batch over many small checkpoints with one job and with two, in turn; one thread per task in both.

    python benchmarks/batch_jobs.py [--checkpoints 30] [--rounds 3] [--jobs 2]

Whole commands are timed, with the start of Python and of the worker processes. The results must have the same bytes.
Writes benchmarks/results/batch-jobs.md; exit code 1 where the jobs are less than 1.5 times as fast as one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import RESULTS, interleaved, machine, markdown, ratio

ROOT = Path(__file__).parent.parent
WANTED = 1.5
CONFIG = """
checkpoints = ["net*.pt"]
data = "digits"
samples = 397
[spectrum]
[robustness]
attack = "pgd-l2"
eps_sweep = [0.5, 1.0]
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "batch-jobs.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.checkpoints):
            shutil.copy(ROOT / "sample_checkpoints" / "digits-standard.pt", folder / f"net{number:03}.pt")
        (folder / "specdiag.toml").write_text(CONFIG)
        several = f"{options.jobs} jobs"
        contenders = {
            "1 job": lambda: batch(folder, 1),
            several: lambda: batch(folder, options.jobs),
        }
        times = interleaved(contenders, options.rounds)
        same = contents(folder / "out1") == contents(folder / f"out{options.jobs}")
    gain = ratio(times, "1 job", several)
    rows = [[name, f"{statistics.median(seconds):.1f} s"] for name, seconds in times.items()]
    rows += [["times as fast", f"{gain:.2f}"], ["same bytes", "yes" if same else "no"]]
    text = "\n".join(
        [
            f"`spectrum` and `robustness` of {options.checkpoints} digits networks, 397 samples, one thread per task, "
            f"{os.cpu_count()} cores, {options.rounds} rounds in turn; the median. Wanted: {WANTED} times as fast.",
            "",
            markdown(["what", "measured"], rows),
            "",
            machine(),
            "",
        ]
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    sys.exit(0 if same and gain >= WANTED else 1)


def batch(folder: Path, jobs: int) -> None:
    """One whole command from nothing."""
    out = folder / f"out{jobs}"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "specdiag", "batch", "specdiag.toml", "--out", out, "--jobs", str(jobs), "-q"],
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    print(f"{jobs} at a time: {time.perf_counter() - start:.1f} s", flush=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


if __name__ == "__main__":
    main()
