"""Which checkpoints a pattern of a configuration names. No torch."""

from __future__ import annotations

from pathlib import Path

from specdiag.loading import remote

WILD = frozenset("*?[")


def matches(base: Path, pattern: str) -> list[Path]:
    """Files that a glob names, in order; relative ones are seen from `base`. A URL's glob is expanded where it lies.

    A name without wildcards is given back whether it exists or not: that it is missing is an error of that checkpoint,
    not an empty pattern. Raises what `remote.glob` does.
    """
    wild = bool(WILD & set(pattern))
    if remote.is_remote(pattern):
        return [Path(entry) for entry in remote.glob(pattern)] if wild else [Path(pattern)]
    if not wild:
        return [base / pattern]
    root = Path(Path(pattern).anchor)
    if Path(pattern).is_absolute():
        found = root.glob(str(Path(pattern).relative_to(root)))
    else:
        found = base.glob(pattern)
    return sorted(path for path in found if path.is_file())
