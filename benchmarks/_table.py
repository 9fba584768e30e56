"""Interleaved timing and the tables that the benchmarks write."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def machine(device: torch.device | None = None) -> str:
    """One line on what ran."""
    if device is not None and device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return f"{where}; torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [list(titles), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
