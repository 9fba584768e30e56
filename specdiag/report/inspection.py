"""The report of `specdiag inspect` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

LISTED = 12


def print_inspection(found: Mapping[str, Any], console: Console) -> None:
    """Format, weights, layers as a tree, safety, and what to run next."""
    _line(console, "file", f"{found['path']} ({_bytes(found['size'])})")
    _line(console, "format", str(found["format"]))
    if found.get("sha256"):
        _line(console, "sha256", str(found["sha256"]))
    if found["count"]:
        _weights(found, console)
    for finding in found["safety"]:
        _line(console, "safety", f"{finding['id']} {finding['text']}")
    if found["blocked"]:
        names = [f"{name} (dangerous)" if name in found["dangerous"] else name for name in found["blocked"]]
        _line(console, "needs code", ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else ""))
    if found["tensors"]:
        console.print(_tree(found))
    if found["error"]:
        _line(console, "refused", f"{found['error']} [{found['reason']}]", style="bold red")
    for step in found["next"]:
        _line(console, "next", step, style="bold")


def _weights(found: Mapping[str, Any], console: Console) -> None:
    dtypes = ", ".join(f"{name} x {count}" for name, count in found["dtypes"].items())
    _line(
        console,
        "weights",
        f"{found['count']} tensors, {found['parameters']:,} values ({dtypes}), NaN or infinite: {found['not_finite']}",
    )
    if found["weights"]:
        _line(console, "taken from", str(found["weights"]))
    if len(found["candidates"]) > 1:
        _line(
            console,
            "also there",
            ", ".join(name or "." for name in found["candidates"]) + " (choose with --weights)",
        )
    if found["stripped"]:
        _line(console, "stripped", ", ".join(found["stripped"]))
    for match in found["architectures"]:
        _line(console, "fits", str(match))
    metadata = found["metadata"]
    if metadata:
        train = metadata.get("train") or {}
        facts = {key: metadata.get(key) for key in ("architecture", "data", "normalise")} | {
            key: train[key]
            for key in ("method", "eps", "norm", "clean_accuracy", "adversarial_accuracy")
            if key in train
        }
        _line(
            console,
            "made as",
            ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None),
        )


def _line(console: Console, title: str, text: str, style: str = "") -> None:
    head, *rest = text.split("\n")
    console.print(Text(f"{title:<11} {head}", style=style), soft_wrap=True)
    for line in rest:
        console.print(Text(f"{'':<11} {line}", style=style), soft_wrap=True)


def _tree(found: Mapping[str, Any]) -> Tree:
    root = Tree("layers")
    nodes: dict[str, Tree] = {"": root}
    for name, shape, dtype in found["tensors"]:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            path, parent = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
            if path not in nodes:
                nodes[path] = nodes[parent].add(Text(parts[depth - 1]))
        size = "x".join(str(side) for side in shape) or "scalar"
        nodes[".".join(parts[:-1])].add(Text(f"{parts[-1]}  {size}  {str(dtype).removeprefix('torch.')}"))
    return root


def _bytes(size: int | None) -> str:
    if size is None:
        return "folder"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"
