"""Random kill -9 over a batch: nothing corrupt, nothing finished is lost, the same bytes in the end.

    python benchmarks/kill_batch.py [--kills 50] [--jobs 1,2] [--seed 0]

A batch over four checkpoints and two analyzers is started and killed with SIGKILL after a random time, again and again;
when it completes before its kill, the folder is compared with an uninterrupted run and emptied. After every kill:

- every results file must open and hold what the uninterrupted run holds for the groups that it has;
- every chunk that was seen in a journal before the kill must still be there, whole, or its group complete;
- the next run must leave those chunks as they are (same file, not computed again).

Writes benchmarks/results/kill-batch.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from _table import RESULTS, machine, markdown

from specdiag.journal import Journal

ROOT = Path(__file__).parent.parent
CONFIG = """
checkpoints = ["net*.pt"]
data = "digits"
samples = 120
batch_size = 8
[spectrum]
[jacobian]
"""


@dataclass
class Tally:
    kills: int = 0
    completed: int = 0
    chunks_seen: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", default="1,2", help="numbers of jobs, taken in turn")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill-batch.md")
    options = parser.parse_args()
    jobs = [int(text) for text in options.jobs.split(",")]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tally = run(folder, options.kills, jobs, options.checkpoints, random.Random(options.seed))
    rows = [
        ["kills (SIGKILL at a random time)", str(tally.kills)],
        ["runs that completed in between, byte-identical", str(tally.completed)],
        ["finished chunks seen before a kill", str(tally.chunks_seen)],
        ["corrupt files, lost chunks, other bytes", str(len(tally.problems))],
    ]
    text = "\n".join([markdown(["what", "count"], rows), "", machine(), ""])
    print(text)
    for problem in tally.problems:
        print(problem)
    if not tally.problems:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    sys.exit(1 if tally.problems else 0)


def run(folder: Path, kills: int, jobs: list[int], checkpoints: int, rng: random.Random) -> Tally:
    """`kills` kills, and one uninterrupted end."""
    source = ROOT / "sample_checkpoints" / "digits-standard.pt"
    for number in range(checkpoints):
        shutil.copy(source, folder / f"net{number}.pt")
    (folder / "specdiag.toml").write_text(CONFIG)
    whole, out = folder / "whole", folder / "out"
    start = time.monotonic()
    subprocess.run(command(folder, whole, 1), check=True, env=environment(), cwd=folder)
    usual = time.monotonic() - start
    tally = Tally()
    while tally.kills < kills:
        kill_once(folder, whole, out, rng.choice(jobs), rng.uniform(0.15, 1.0) * usual, tally)
    subprocess.run(command(folder, out, jobs[-1]), check=True, env=environment(), cwd=folder)
    complete(whole, out, tally)
    return tally


def kill_once(folder: Path, whole: Path, out: Path, jobs: int, seconds: float, tally: Tally) -> None:
    before = chunks(out)
    process = subprocess.Popen(
        command(folder, out, jobs), env=environment(), cwd=folder, start_new_session=True
    )
    deadline = time.monotonic() + seconds
    seen: dict[Path, tuple[int, int]] = {}
    while time.monotonic() < deadline and process.poll() is None:
        seen |= chunks(out)
        time.sleep(0.003)
    if process.poll() is not None:
        if process.returncode != 0:
            tally.problems.append(f"the run ended with exit code {process.returncode}")
        complete(whole, out, tally)
        shutil.rmtree(out)
        return
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # a worker of the killed run may be at its last file; it ends when it finds its parent gone
    time.sleep(0.05)
    tally.kills += 1
    tally.chunks_seen += len(seen)
    after = chunks(out)
    for path, identity in {**before, **seen}.items():
        if group_complete(path, out):
            continue
        if path not in after:
            tally.problems.append(f"lost: {path.name} of {path.parent.name}")
        elif path in before and after[path] != before[path]:
            tally.problems.append(f"computed again: {path.name} of {path.parent.name}")
        elif identity != after[path] and path not in before:
            tally.problems.append(f"written twice: {path.name} of {path.parent.name}")
    whole_chunks(out, tally)
    same_groups(whole, out, tally)


def chunks(out: Path) -> dict[Path, tuple[int, int]]:
    """Chunk files of all journals with inode and time."""
    found = {}
    for folder in listed(out):
        if not folder.name.endswith(".journal"):
            continue
        for path in listed(folder):
            if not path.name.startswith("chunk-"):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found[path] = (status.st_ino, status.st_mtime_ns)
    return found


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it was removed meanwhile, as journals are."""
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def group_complete(chunk: Path, out: Path) -> bool:
    """Whether the group that a chunk belongs to is in its results file."""
    name, analyzer = chunk.parent.name.removeprefix(".").removesuffix(".journal").rsplit(".", 1)
    path = out / f"{name}.h5"
    if not path.exists():
        return False
    with h5py.File(path) as file:
        return analyzer in file


def whole_chunks(out: Path, tally: Tally) -> None:
    """Every chunk file that carries its name must be whole."""
    for folder in out.glob(".*.journal"):
        settings = folder / "settings.json"
        if not settings.exists():
            continue
        known = json.loads(settings.read_text())
        count = len(list(folder.glob("chunk-*")))
        if len(Journal(folder, known["settings_hash"], known["settings"]).finished()) != count:
            tally.problems.append(f"a torn chunk in {folder.name}")


def same_groups(whole: Path, out: Path, tally: Tally) -> None:
    """Every group that is there holds the arrays of the uninterrupted run."""
    for path in out.glob("*.h5"):
        try:
            with h5py.File(path) as ours, h5py.File(whole / path.name) as theirs:
                for group in ours:
                    for name in theirs[group]:
                        if not np.array_equal(ours[group][name][()], theirs[group][name][()], equal_nan=True):
                            tally.problems.append(f"other numbers in {path.name}: {group}/{name}")
        except (OSError, KeyError, TypeError) as error:
            tally.problems.append(f"corrupt: {path.name}: {error}")


def complete(whole: Path, out: Path, tally: Tally) -> None:
    """An ended run: the same files byte by byte, and nothing left beside them."""
    for path in whole.glob("*.h5"):
        if not (out / path.name).exists() or (out / path.name).read_bytes() != path.read_bytes():
            tally.problems.append(f"other bytes: {path.name}")
    left = [
        path.name for path in out.iterdir() if path.name.startswith(".") and not path.name.endswith(".tmp")
    ]
    if left:
        tally.problems.append(f"left behind: {left}")
    tally.completed += 1


def command(folder: Path, out: Path, jobs: int) -> list[str]:
    more = ["--out", str(out), "--jobs", str(jobs), "--quiet"]
    return [sys.executable, "-m", "specdiag", "batch", "specdiag.toml", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
