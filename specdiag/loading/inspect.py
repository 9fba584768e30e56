"""What is in a checkpoint file, is it safe, and what to run next: the report behind `specdiag inspect`.

torch is imported only for files that hold tensors to look at.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag.errors import CheckpointError, SpecdiagError
from specdiag.loading import remote, scan, sniff
from specdiag.loading.text import some

if TYPE_CHECKING:
    import torch

    from specdiag.loading.checkpoints import Checkpoint

PICKLES = ("torch-zip", "torch-legacy", "pickle", "torchscript", "torch-package", "mar")


def inspect(path: Path | str, weights: str | None = None) -> dict[str, Any]:
    """A JSON-able report; refused files get one too, with `error`, `reason` and `next`.

    Keys: path, size, sha256, format, loadable, error, reason, weights, candidates, stripped, count (of
    tensors), parameters, dtypes, not_finite, tensors [(name, shape, dtype)], layers [{name, depth, tensors,
    parameters}], architectures [flags], metadata, facts, safety [{id, text}], blocked, dangerous, next
    (commands or steps). Raises CheckpointError only where there is no file to read.
    """
    source = remote.url_of(path) if remote.is_remote(path) else str(path)
    path = remote.fetch(path)
    format = sniff.identify(path)
    report: dict[str, Any] = {
        "path": source,
        "format": format,
        "size": path.stat().st_size if path.is_file() else None,
        "sha256": None,
        "loadable": False,
        "error": None,
        "reason": None,
        "weights": None,
        "candidates": [],
        "stripped": [],
        "count": 0,
        "parameters": 0,
        "dtypes": {},
        "not_finite": 0,
        "tensors": [],
        "layers": [],
        "architectures": [],
        "metadata": {},
        "facts": {},
        "safety": [],
        "blocked": [],
        "dangerous": [],
        "next": [],
    }
    _scan(path, format, report)
    try:
        if format not in sniff.LOADABLE:
            raise sniff.refusal(path, format)
        _contents(path, weights, report)
    except SpecdiagError as error:
        report["error"] = error.what
        report["reason"] = error.reason if isinstance(error, CheckpointError) else "unreadable"
        report["next"] = [error.todo] if error.todo else []
        report["loadable"] = False
    return report


def layers(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The module paths in the names of tensors, in order, each with what lies below it; depth 0 is the outermost."""
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")[:-1]
        for depth in range(len(parts)):
            path = ".".join(parts[: depth + 1])
            row = found.setdefault(path, {"name": path, "depth": depth, "tensors": 0, "parameters": 0})
            row["tensors"] += 1
            row["parameters"] += tensor.numel()
    # a module's rows stay together, whatever the order of the tensors
    places = {path: number for number, path in enumerate(found)}

    def key(path: str) -> list[int]:
        parts = path.split(".")
        return [places[".".join(parts[: depth + 1])] for depth in range(len(parts))]

    return [found[path] for path in sorted(found, key=key)]


def _scan(path: Path, format: str, report: dict[str, Any]) -> None:
    if format not in PICKLES:
        text = "No pickle at its top." if path.is_dir() else "No pickle in it."
        report["safety"].append({"id": "SD300", "text": text})
        return
    try:
        found = scan.scan(path, format)
    except Exception as error:
        text = error.what if isinstance(error, SpecdiagError) else f"Not scanned ({type(error).__name__})."
        report["safety"].append({"id": "SD303", "text": text})
        return
    report["blocked"], report["dangerous"] = list(found.blocked), list(found.dangerous)
    if found.dangerous:
        text = f"Known-dangerous calls: {some(found.dangerous, 8)}. Do not load this file anywhere."
        report["safety"].append({"id": "SD301", "text": text})
    elif found.blocked:
        report["safety"].append({"id": "SD302", "text": f"Names beside tensors: {some(found.blocked, 8)}."})
    else:
        report["safety"].append({"id": "SD300", "text": "Its pickle names tensors only."})


def _contents(path: Path, weights: str | None, report: dict[str, Any]) -> None:
    from specdiag.loading import checkpoints, checks

    if path.is_file():
        report["sha256"] = checkpoints.sha256_of(path)
    checkpoint = checkpoints.read_checkpoint(path, weights, finite=False)
    tensors = checkpoint.tensors
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    report |= {
        "sha256": checkpoint.sha256,
        "loadable": True,
        "weights": checkpoint.weights,
        "candidates": list(checkpoint.candidates),
        "stripped": list(checkpoint.stripped),
        "count": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": {kind: list(types.values()).count(kind) for kind in dict.fromkeys(types.values())},
        "not_finite": sum(checks.not_finite(tensor) for tensor in tensors.values()),
        "tensors": [(name, list(tensor.shape), types[name]) for name, tensor in tensors.items()],
        "layers": layers(tensors),
        "metadata": checkpoint.metadata,
        "facts": {
            name: str(value) if isinstance(value, Path) else value for name, value in checkpoint.facts.items()
        },
    }
    for finding in checkpoint.findings:
        identity, _, text = finding.partition(" ")
        report["safety"].append({"id": identity, "text": text})
    report["next"] = _next(path, checkpoint, weights, report)
    checks.check_tensors(tensors, path)


def _next(path: Path, checkpoint: Checkpoint, weights: str | None, report: dict[str, Any]) -> list[str]:
    from specdiag.loading import architectures

    where = shlex.quote(str(path)) + (f" --weights {shlex.quote(weights)}" if weights else "")
    if checkpoint.metadata.get("architecture"):
        report["architectures"] = [str(checkpoint.metadata["architecture"])]
        return [f"specdiag spectrum {where}"]
    found = architectures.match(checkpoint.tensors, architectures.hints(checkpoint.facts))
    report["architectures"] = [str(entry) for entry in found]
    if not found:
        return [f"specdiag spectrum {where} --arch path/to/file.py:factory --data DATA"]
    commands = [architectures.ready_command(path, entry, None) for entry in found]
    return [command.replace(shlex.quote(str(path)), where, 1) for command in commands]
