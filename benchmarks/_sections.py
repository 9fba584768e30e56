"""A results file whose parts are written by separate runs: each run replaces its own part and keeps the others."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, title: str, section: str, text: str) -> None:
    """Put `text` under `## section` of the Markdown file, in the place it had or at the end."""
    parts: dict[str, str] = {}
    if path.exists():
        for block in path.read_text().split("\n## ")[1:]:
            name, _, body = block.partition("\n")
            parts[name.strip()] = body.strip()
    parts[section] = text.strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [f"# {title}", *(f"## {name}\n\n{body}" for name, body in parts.items())]
    path.write_text("\n\n".join(blocks) + "\n")
