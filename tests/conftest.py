"""Shared fixtures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for variable in ("NO_COLOR", "FORCE_COLOR", "SPECDIAG_DEBUG", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(variable, None)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", ROOT.parent / "shared"))
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of shared assets; tests that need it skip where it is absent (fail where it must be there)."""
    if not ASSETS.is_dir():
        if os.environ.get("SPECDIAG_ASSETS_REQUIRED"):
            pytest.fail(f"the shared assets are missing: {ASSETS}")
        pytest.skip("no shared assets")
    return ASSETS


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the bundled sample checkpoints."""
    return ROOT / "sample_checkpoints"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests share two cores between two workers."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def cuda() -> str:
    """A CUDA device; tests that need one skip without it."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"
