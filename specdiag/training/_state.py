"""The state of an unfinished run: one file, written as a whole after each epoch, so that no kill spoils it."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdiag.errors import ResultsError
from specdiag.training._context import State

Curves = dict[str, list[float]]


@dataclass(slots=True)
class Saved:
    """What a run needs to go on: epochs done, weights, optimiser, the methods' tensors, the curves so far."""

    key: str
    epoch: int
    network: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    states: dict[str, State]
    curves: Curves = field(default_factory=dict)


def save(path: Path, saved: Saved) -> None:
    """Write the state: temporary file, fsync, rename."""
    buffer = io.BytesIO()
    content = {name: getattr(saved, name) for name in saved.__slots__}
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, key: str, device: torch.device) -> Saved | None:
    """The state of the same run, or None where there is none.

    Raises ResultsError where the file is damaged or belongs to a run with other settings.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        saved = Saved(**content)
    except (RuntimeError, ValueError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        detail = str(error).split("\n", 1)[0][:120]
        raise ResultsError(
            f"The state of the unfinished run, {path}, cannot be read: {detail}.",
            f"Start anew with --overwrite, or delete {path}.",
        ) from None
    if saved.key != key:
        raise ResultsError(
            f"An unfinished run with other settings has its state in {path}.",
            "Repeat that command to finish it, or start anew with --overwrite, or choose another --out.",
        )
    return saved
