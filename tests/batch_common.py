"""A small batch: checkpoints, a configuration file, and its results as bytes."""

from __future__ import annotations

from pathlib import Path

from command import digits_checkpoint

CONFIG = """
checkpoints = ["runs/*.pt"]
data = "digits"
samples = 40
batch_size = 8

[spectrum]
"""
GATE = """
[[gate]]
metric = "spectrum.sigma_max_mean"
max_increase = "10%"
baseline = "baseline.json"
"""


def project(folder: Path, count: int = 2, text: str = CONFIG) -> Path:
    """`count` untrained networks in FOLDER/runs and a configuration file; returns its path."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        digits_checkpoint(folder / "runs" / f"net{number}.pt", seed=number)
    config = folder / "specdiag.toml"
    config.write_text(text)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Results files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders: journals, locks, temporary files."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
