"""Where the bundled sample checkpoints are: inside the installed package, else beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from specdiag.errors import CheckpointError

DEFAULT = "digits-standard.pt"


def folder() -> Path:
    """The folder of sample checkpoints."""
    package = Path(__file__).resolve().parent
    for place in (package / "sample_checkpoints", package.parent / "sample_checkpoints"):
        if (place / DEFAULT).is_file():
            return place
    raise CheckpointError("The bundled sample checkpoints are missing.", "Name a checkpoint.", "missing")


def default() -> Path:
    """The checkpoint that a command takes when none is named."""
    return folder() / DEFAULT
