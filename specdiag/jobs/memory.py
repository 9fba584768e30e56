"""How much memory a run will take, said before it starts, and the chunk size that stays below a limit."""

from __future__ import annotations

import re
from typing import Any

import torch

from specdiag.errors import UsageError
from specdiag.model import Model
from specdiag.runner import chunk_size
from specdiag.sampling import CHUNK_MULTIPLE
from specdiag.schema import Analyzer

# Python, torch and its libraries: 350 to 450 MB on Linux
BASE = 400 * 10**6
# the first look at a network takes two samples through it, without a graph
PROBED = 2
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def predicted(model: Model, analyzer: Analyzer, options: Any, chunk: int) -> int:
    """Bytes at the peak of a run: the library, two copies of the weights, and the activations and arrays of one chunk.

    An upper estimate for convolutional networks (0.7 to 1 of it was measured), from shapes and options alone.
    """
    item = torch.finfo(model.dtype).bits // 8
    weights = item * sum(parameter.numel() for parameter in model.network.parameters())
    sizes = {"K": model.outputs, "D": model.inputs, "F": model.facts.features}
    extra = analyzer.memory(options, sizes) if analyzer.memory is not None else 0
    activations = model.facts.activations
    working = max(PROBED * activations, chunk * (2 * activations + extra))
    return BASE + 2 * weights + item * working


def fitting_chunk(
    model: Model, analyzer: Analyzer, options: Any, asked: int | None, limit: int | None
) -> int:
    """Samples per chunk: as `runner.chunk_size`, or less where the prediction is above the limit (bytes)."""
    chunk = chunk_size(model, analyzer, options, asked)
    if limit is None:
        return chunk
    while chunk > 1 and predicted(model, analyzer, options, chunk) > limit:
        chunk = chunk - CHUNK_MULTIPLE if chunk > CHUNK_MULTIPLE else 1
    need = predicted(model, analyzer, options, chunk)
    if need > limit:
        raise UsageError(
            f"One sample at a time needs about {readable(need)}, more than --max-memory {readable(limit)}.",
            "Use --method gram or --method krylov --top 20 where the analyzer has them, --dtype float32, or allow more.",
        )
    return chunk


def parse_bytes(text: str) -> int:
    """Bytes from texts such as 700MB, 1.5G or 2000000000; units are powers of 1,000."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)i?b?\s*", str(text).lower())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--max-memory: '{text}' is no amount of memory.", "Write it like 4GB or 700MB.")
    return int(float(found[1]) * UNITS[found[2]])


def readable(amount: float) -> str:
    """Bytes as a person reads them."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"
