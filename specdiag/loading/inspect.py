"""What is in a checkpoint file, is it safe, and what to run next: the report behind `specdiag inspect`.

torch is imported only for files that hold tensors to look at.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from specdiag.errors import CheckpointError, SpecdiagError
from specdiag.loading import scan, sniff

SHOWN_TENSORS = 100_000


def inspect(path: Path | str, weights: str | None = None) -> dict[str, Any]:
    """A JSON-able report; refused files get one too, with `error`, `reason` and `next`.

    Keys: path, size, sha256, format, loadable, error, reason, weights, candidates, stripped, count (of
    tensors), parameters, dtypes, not_finite, tensors [(name, shape, dtype)], architectures [flags],
    metadata, safety (findings {id, text}), blocked, dangerous, next (commands or steps). Raises
    CheckpointError only where there is no file.
    """
    path = Path(path)
    format = sniff.identify(path)
    report: dict[str, Any] = {
        "path": str(path),
        "format": format,
        "loadable": False,
        "error": None,
        "reason": None,
    }
    report |= {"weights": None, "candidates": [], "stripped": [], "count": 0, "parameters": 0, "dtypes": {}}
    report |= {"not_finite": 0, "tensors": [], "architectures": [], "metadata": {}, "safety": []}
    report |= {"blocked": [], "dangerous": [], "next": []}
    report |= {"sha256": None}
    report["size"] = path.stat().st_size if path.is_file() else None
    _scan(path, format, report)
    try:
        if format not in sniff.LOADABLE:
            raise sniff.refusal(path, format)
        _contents(path, weights, report)
    except SpecdiagError as error:
        report["error"] = error.what
        report["reason"] = error.reason if isinstance(error, CheckpointError) else "unreadable"
        report["next"] = [error.todo] if error.todo else []
    return report


def _scan(path: Path, format: str, report: dict[str, Any]) -> None:
    if format not in ("torch-zip", "torch-legacy", "pickle", "torchscript", "torch-package", "mar"):
        report["safety"].append({"id": "SD300", "text": "No pickle in it."})
        return
    try:
        found = scan.scan(path, format)
    except CheckpointError as error:
        report["safety"].append({"id": "SD303", "text": error.what})
        return
    except Exception as error:
        report["safety"].append(
            {"id": "SD303", "text": f"The pickle cannot be scanned ({type(error).__name__})."}
        )
        return
    report["blocked"], report["dangerous"] = list(found.blocked), list(found.dangerous)
    if found.dangerous:
        text = f"Known-dangerous calls: {', '.join(found.dangerous)}. Do not load this file anywhere."
        report["safety"].append({"id": "SD301", "text": text})
    elif found.blocked:
        report["safety"].append({"id": "SD302", "text": f"Names that need code: {', '.join(found.blocked)}."})
    else:
        report["safety"].append({"id": "SD300", "text": "Its pickle names tensors only."})


def _contents(path: Path, weights: str | None, report: dict[str, Any]) -> None:
    from specdiag.loading import checkpoints

    checkpoint = checkpoints.read_checkpoint(path, weights)
    report["sha256"] = checkpoint.sha256
    tensors = checkpoint.tensors
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    report["loadable"] = True
    report["weights"] = checkpoint.weights
    report["candidates"] = list(checkpoint.candidates)
    report["stripped"] = list(checkpoint.stripped)
    report["count"] = len(tensors)
    report["parameters"] = sum(tensor.numel() for tensor in tensors.values())
    report["dtypes"] = dtypes
    report["tensors"] = [
        (name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in list(tensors.items())[:SHOWN_TENSORS]
    ]
    report["metadata"] = checkpoint.metadata
    for finding in checkpoint.findings:
        identity, _, text = finding.partition(" ")
        report["safety"].append({"id": identity, "text": text})
    report["next"] = _next(path, checkpoint, report)


def _next(path: Path, checkpoint: Any, report: dict[str, Any]) -> list[str]:
    from specdiag.loading import architectures

    where = shlex.quote(str(path))
    if checkpoint.metadata.get("architecture"):
        report["architectures"] = [checkpoint.metadata["architecture"]]
        return [f"specdiag spectrum {where}"]
    found = architectures.match(checkpoint.tensors)
    report["architectures"] = [str(entry) for entry in found]
    if not found:
        return [f"specdiag spectrum {where} --arch path/to/file.py:factory --data DATA"]
    return [architectures.ready_command(path, entry, None) for entry in found]
