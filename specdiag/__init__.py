"""Spectral diagnostics of trained networks.

`load_model`, `load_data` and `analyze` are the whole Python API; they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdiag.api import analyze, load_data, load_model

__version__ = "0.1.0"
__all__ = ["__version__", "analyze", "load_data", "load_model"]


def __getattr__(name: str) -> Any:
    if name in ("analyze", "load_data", "load_model"):
        from specdiag import api

        return getattr(api, name)
    raise AttributeError(f"module 'specdiag' has no attribute '{name}'")
