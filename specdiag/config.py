"""The configuration file: `specdiag.toml`, or `[tool.specdiag]` in `pyproject.toml`, of the working directory."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from specdiag.errors import UsageError

FILE = "specdiag.toml"


def find(folder: Path | None = None) -> Path | None:
    """The configuration file of a folder (default: the working directory), or None."""
    base = folder or Path.cwd()
    if (base / FILE).is_file():
        return base / FILE
    project = base / "pyproject.toml"
    if project.is_file() and "specdiag" in _parse(project).get("tool", {}):
        return project
    return None


def read(path: Path | None) -> dict[str, Any]:
    """The configuration as a dictionary; empty for None. A syntax error is a UsageError with its line."""
    if path is None:
        return {}
    content = _parse(path)
    if path.name != "pyproject.toml":
        return content
    table = content.get("tool", {}).get("specdiag")
    if not isinstance(table, dict):
        raise UsageError(f"{path} has no [tool.specdiag].", "Name another file, or add the table.")
    return dict(table)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
