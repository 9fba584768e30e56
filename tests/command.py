"""Run the command line in a test, and checkpoints to run it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import ROOT
from typer.testing import CliRunner, Result

from specdiag.loading.architectures import build
from specdiag.loading.checkpoints import save_checkpoint

COMMAND = [sys.executable, "-m", "specdiag"]


def run(*arguments: object) -> Result:
    """The command in this process: fast; stdout and stderr apart."""
    from specdiag.cli.main import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="specdiag")


def spawn(*arguments: object, cwd: Path | None = None, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*COMMAND, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


def digits_checkpoint(path: Path, seed: int = 0, **metadata: object) -> Path:
    """An untrained cnn4 for the digits, with specdiag's own metadata."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build("cnn4", {"width": 4, "size": 8})
    facts = {
        "architecture": "cnn4",
        "arch_args": {"width": 4, "size": 8},
        "normalise": "none",
        "data": "digits",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "train": {"method": "none"},
    }
    save_checkpoint(path, network.state_dict(), {**facts, **metadata})
    return path
