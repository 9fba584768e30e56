"""One Markdown page of all claims tables in a folder: python -m specdiag.reproduce._page FOLDER [--note FILE] [-o PAGE].

FOLDER holds what `specdiag reproduce PAPER` wrote, one folder per paper; nothing is computed. What a reader must
know of these runs (recipes that were changed, say) comes from the note, a Markdown file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from specdiag.errors import ResultsError

INTRODUCTION = """# The papers' claims, on models trained here

Each table below is what `specdiag reproduce PAPER` wrote: the models are trained by `specdiag train`'s methods, measured
by the analyzers, and every claim of the paper is put as one number with a 95 % interval and a rule. A claim that does not
hold here is printed as such. Small networks on small images are not the papers' setting: a verdict is about this
recipe, which stands below each table.

```
specdiag reproduce roth2020 --data digits
```

trains what it needs (it says first how long that takes), continues where it was interrupted, and writes checkpoints,
results, figures, `claims.md` and `claims.json`. `--data fashion-mnist` and `--data cifar10` take `--data-file FILE.npz`.
This page was joined from such folders by `python -m specdiag.reproduce._page`.
"""


def page(folder: Path, note: str = "") -> str:
    """The page; tables in the order of the folders' names, `note` before them. Raises ResultsError where there is none."""
    tables = sorted(folder.glob("*/claims.md"))
    if not tables:
        raise ResultsError(f"{folder} holds no claims.md.", "Run: specdiag reproduce roth2020")
    texts = [path.read_text() for path in tables]
    parts = [INTRODUCTION]
    if note:
        parts.append(_lowered(note))
    parts.append("\n".join(["| paper and data | claims |", "|---|---|", *map(_summary, texts)]) + "\n")
    return "\n".join([*parts, *map(_lowered, texts)])


def _lowered(text: str) -> str:
    """Headings one level down, under the page's own."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines()) + "\n"


def _summary(text: str) -> str:
    """One row of the first table: the heading up to its colon, and how many claims hold."""
    lines = text.splitlines()
    heading = lines[0].lstrip("# ").partition(":")[0]
    counts = next((line for line in lines if " claims: " in line), "")
    return f"| {heading} | {counts.rstrip('.')} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Join the claims tables of a folder into one page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=None, help="file to write; left out: stdout")
    parser.add_argument("--note", type=Path, default=None, help="Markdown file to put before the tables")
    given = parser.parse_args(arguments)
    text = page(given.folder, given.note.read_text() if given.note else "")
    if given.out is None:
        print(text, end="")
    else:
        given.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
