"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("SPECDIAG_ASSETS", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of shared assets; tests that need it skip where it is absent."""
    if not ASSETS.is_dir():
        pytest.skip("no shared assets")
    return ASSETS
