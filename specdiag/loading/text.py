"""Names out of a file as they may be shown: no line breaks, no terminal codes, not endless."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 120


def shown(name: str) -> str:
    """The name with everything unprintable replaced, cut at 120 characters."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in name[: LONGEST + 1])
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")
