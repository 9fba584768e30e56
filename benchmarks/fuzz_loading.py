"""Mutated checkpoints into the loader: every file must load or be refused with a cause, whatever its bytes.

    python benchmarks/fuzz_loading.py [--files 20000] [--seed 0] [--cli-every 200] [--out FILE]

Files are mutated from real checkpoints (the bundled ones, the public ResNet-20 where it is there, and the same weights
in other formats). Workers of their own read them in process; one in 200 also goes through the command line. Looked for:
exceptions other than a refusal, tracebacks, dead workers, more than 10 s, more memory than twice the file plus 500 MB,
and any call that runs a program. Writes benchmarks/results/fuzz-loading.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", ROOT.parent / "shared"))
BATCH = 4000
LIMIT_S = 10
LIMIT_MB = 500
INSPECTED = 20
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
)
OPCODES = b"c\x93R\x81ibo}]).q\x94h\x8c\x95Q0(tN\x88"


def sources(folder: Path) -> list[Path]:
    """Real checkpoints, and their weights in the other formats."""
    import argparse as plain

    import numpy as np
    import torch
    from safetensors.torch import save_file

    from specdiag.loading.architectures import build
    from specdiag.loading.checkpoints import read_checkpoint

    found = sorted((ROOT / "sample_checkpoints").glob("digits*.pt"))[:3]
    found += sorted((ASSETS / "checkpoints").glob("*.th"))
    torch.manual_seed(0)
    network = build("cnn4", {"width": 4, "size": 8})
    weights = dict(read_checkpoint(found[0]).tensors) if found else network.state_dict()

    def save(name: str, content: Any, **kwargs: Any) -> None:
        torch.save(content, folder / name, **kwargs)
        found.append(folder / name)

    save("legacy.pth", weights, _use_new_zipfile_serialization=False)
    save("module.pt", network)
    save("module-legacy.pt", network, _use_new_zipfile_serialization=False)
    training = {
        "state_dict": weights,
        "args": plain.Namespace(arch="cnn4", lr=0.1),
        "epoch": 3,
        "path": folder,
    }
    save("training.ckpt", training)
    save("training-legacy.ckpt", training, _use_new_zipfile_serialization=False)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in weights.items()})
    return [*found, folder / "model.safetensors", folder / "weights.npz"]


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to four mutations of a file; half of those of zip archives go inside a member, with checksums made good."""
    if data[:2] == b"PK" and draw.random() < 0.5:
        return _inside(data, others, draw)
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        out = _once(out, others, draw)
    return bytes(out)


def _inside(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        members = old.infolist()
        pickles = [member.filename for member in members if member.filename.endswith(".pkl")]
        chosen = draw.choice(pickles) if pickles and draw.random() < 0.8 else draw.choice(members).filename
        for member in members:
            content = old.read(member)
            if member.filename == chosen:
                content = bytes(_once(bytearray(content), others, draw))
            new.writestr(member.filename, content)
    return written.getvalue()


def _once(out: bytearray, others: list[bytes], draw: random.Random) -> bytearray:
    size = len(out)
    if size < 2:
        return out
    # formats are decided at the ends of a file
    place = draw.choice(
        (draw.randrange(size), draw.randrange(min(size, 600)), size - 1 - draw.randrange(min(size, 600)))
    )
    kind = draw.randrange(9)
    if kind == 0:
        out[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        out[place] = draw.randrange(256)
    elif kind == 2:
        del out[place : place + draw.choice((1, 2, 8, 100, 5000))]
    elif kind == 3:
        out[place:place] = out[place : place + draw.choice((1, 8, 100, 5000))]
    elif kind == 4:
        del out[place:]
    elif kind == 5:
        out[place : place + 8] = draw.choice(
            (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\0\0\0\0\xff\xff\xff\x7f")
        )
    elif kind == 6:
        other = draw.choice(others)
        start = draw.randrange(len(other))
        out[place:place] = other[start : start + draw.choice((4, 64, 2000))]
    elif kind == 7:
        out[place] = draw.choice(OPCODES)
    else:
        out[place:place] = draw.choice(
            (b"cos\nsystem\n", b"(S'x'\ntR", b"\x8c\x02os\x8c\x06system\x93", b"../", b"999999999")
        )
    return out


def work(folder: Path, start: int, stop: int, seed: int, report: Path) -> None:
    """Read files start..stop; counts and trouble go to `report`, the number at hand to a file beside it."""
    from specdiag.errors import SpecdiagError
    from specdiag.loading.checkpoints import read_checkpoint
    from specdiag.loading.inspect import inspect

    paths = [Path(line) for line in (folder / "sources.txt").read_text().splitlines()]
    contents = [path.read_bytes() for path in paths]
    called: list[str] = []
    # finding the folder for temporary files makes one and removes it
    tempfile.gettempdir()
    sys.addaudithook(lambda event, _: called.append(event) if event.startswith(FORBIDDEN) else None)
    signal.signal(signal.SIGALRM, _hang)
    counts: Counter[str] = Counter()
    trouble: list[str] = []
    slowest, most = 0.0, 0.0
    target = folder / f"mutated-{start}"
    for number in range(start, stop):
        draw = random.Random(f"{seed}/{number}")
        which = draw.randrange(len(paths))
        target.write_bytes(mutated(contents[which], contents, draw))
        (folder / f"at-{start}").write_text(str(number))
        called.clear()
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _status("VmRSS"), time.perf_counter()
        signal.alarm(LIMIT_S)
        try:
            read_checkpoint(target)
            counts["loaded"] += 1
        except SpecdiagError as error:
            counts[getattr(error, "reason", "") or type(error).__name__] += 1
            if not error.what or not error.todo:
                trouble.append(f"{number}: a refusal without cause or next step")
        except BaseException as error:
            trouble.append(f"{number} ({paths[which].name}): {type(error).__name__}: {str(error)[:200]}")
        try:
            if number % INSPECTED == 0:
                inspect(target)
        except SpecdiagError:
            pass
        except BaseException as error:
            trouble.append(
                f"{number} ({paths[which].name}), inspect: {type(error).__name__}: {str(error)[:200]}"
            )
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - began)
        used = _status("VmHWM") - before
        most = max(most, used)
        if used > 2 * target.stat().st_size / 2**20 + LIMIT_MB:
            trouble.append(f"{number} ({paths[which].name}): {used:.0f} MB")
        if called:
            trouble.append(f"{number} ({paths[which].name}): called {called[0]}")
    target.unlink()
    report.write_text(json.dumps({"counts": counts, "trouble": trouble, "slowest": slowest, "most": most}))


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _hang(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT_S} s")


def through_cli(folder: Path, number: int, seed: int) -> tuple[int, list[str]]:
    """Exit code of `specdiag spectrum` on one mutated file, and what is wrong with it."""
    paths = [Path(line) for line in (folder / "sources.txt").read_text().splitlines()]
    contents = [path.read_bytes() for path in paths]
    draw = random.Random(f"{seed}/{number}")
    target = folder / f"cli-{number}.pt"
    target.write_bytes(mutated(contents[draw.randrange(len(paths))], contents, draw))
    command = [
        sys.executable,
        "-m",
        "specdiag",
        "spectrum",
        str(target),
        "--samples",
        "8",
        "--figure",
        "none",
    ]
    command += ["--out", str(folder / f"out-{number}"), "--quiet", "--device", "cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    except subprocess.TimeoutExpired:
        return -1, [f"{number}: the command hangs"]
    target.unlink()
    wrong = [f"{number}: the command shows a traceback"] if "Traceback" in done.stderr else []
    if done.returncode not in (0, 2, 3) or "internal error" in done.stderr.lower():
        wrong.append(f"{number}: exit code {done.returncode}: {done.stderr[-300:]}")
    return done.returncode, wrong


def written(given: Any, kinds: int, seconds: float, found: dict[str, Any], out: Path) -> str:
    """The report, written to `out`."""
    counts, codes, trouble = found["counts"], found["codes"], found["trouble"]
    lines = [
        "# Mutated checkpoints",
        "",
        f"{given.files:,} files mutated from {kinds} checkpoints, seed {given.seed}, in {seconds:.0f} s: "
        f"{len(trouble)} in trouble. Slowest {found['slowest']:.1f} s, most memory {found['most']:.0f} MB beside the process.",
        "",
        f"Of them {sum(codes.values())} through `specdiag spectrum`, exit codes "
        + ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        + ".",
        "",
        "| outcome | files |",
        "|---|---|",
        *(f"| {outcome} | {count:,} |" for outcome, count in counts.most_common()),
        "",
        *(f"- {line}" for line in trouble),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines).rstrip() + "\n"
    out.write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cli-every", type=int, default=200)
    parser.add_argument("--work", nargs=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz-loading.md")
    given = parser.parse_args()
    if given.work:
        folder, start, stop, report = given.work
        work(Path(folder), int(start), int(stop), given.seed, Path(report))
        return
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    trouble: list[str] = []
    slowest = most = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sources.txt").write_text("\n".join(str(path) for path in sources(folder)))
        kinds = len((folder / "sources.txt").read_text().splitlines())
        start = 0
        while start < given.files:
            stop, report = min(start + BATCH, given.files), folder / f"report-{start}.json"
            command = [
                sys.executable,
                __file__,
                "--seed",
                str(given.seed),
                "--work",
                name,
                str(start),
                str(stop),
                str(report),
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode or not report.exists():
                at = int((folder / f"at-{start}").read_text())
                trouble.append(f"{at}: the worker died ({done.returncode}): {done.stderr[-300:]}")
                counts["worker died"] += 1
                start = at + 1
                continue
            found = json.loads(report.read_text())
            counts.update(found["counts"])
            trouble += found["trouble"]
            slowest, most = max(slowest, found["slowest"]), max(most, found["most"])
            print(f"{stop} files, {time.perf_counter() - began:.0f} s, trouble {len(trouble)}", flush=True)
            start = stop

        def report_now() -> str:
            found = {"counts": counts, "codes": codes, "trouble": trouble, "slowest": slowest, "most": most}
            return written(given, kinds, time.perf_counter() - began, found, given.out)

        report_now()
        for number in range(0, given.files, given.cli_every) if given.cli_every else ():
            code, wrong = through_cli(folder, number, given.seed)
            codes[code] += 1
            trouble += wrong
            report_now()
        print(report_now())


if __name__ == "__main__":
    main()
