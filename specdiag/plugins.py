"""Find analyzers, attacks, training methods and papers by listing a folder; load one by name.

A plugin is a module whose file name does not start with an underscore. The file `pgd_l2.py` is the
plugin `pgd-l2`. Listing imports nothing, so that `specdiag --help` stays fast.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from specdiag.errors import UsageError, suggest

PACKAGE = Path(__file__).parent
KINDS = {
    "analyzer": ("analyzers", "ANALYZER"),
    "attack": ("attacks", "ATTACK"),
    "training": ("training", "METHOD"),
    "paper": ("reproduce", "PAPER"),
}


@cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all plugins of a kind (`analyzer`, `attack`, `training` or `paper`), sorted; nothing is imported."""
    folder = PACKAGE / KINDS[kind][0]
    files = (file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", "-") for stem in files))


@cache
def load(kind: str, name: str) -> Any:
    """The constant (`ANALYZER`, `ATTACK`, `METHOD` or `PAPER`) that the plugin's file exports."""
    if name not in names(kind):
        what = "training method" if kind == "training" else kind
        raise UsageError(f"There is no {what} named '{name}'.", suggest(name, names(kind)))
    folder, constant = KINDS[kind]
    module = importlib.import_module(f"specdiag.{folder}.{name.replace('-', '_')}")
    return getattr(module, constant)
