"""The scene's images made larger: every pixel repeated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.loading.datasets import load_data
from specdiag.reproduce._plan import Scene

# training images that are enlarged, where the scene has more
LARGEST = 5000


def upsampled(scene: Scene, factor: int, folder: Path) -> str:
    """The spec of the scene's images with both sides `factor` times as long; written to `folder` as .npz once.

    Factor 1 is written too, so that all sizes have the same samples in the same order. Raises DataError where the
    scene's data are no images.
    """
    count = scene.train_samples or LARGEST
    name = f"{Path(scene.data).stem.partition(':')[0]}-{count}-{scene.many}-x{factor}.npz"
    path = folder.resolve() / name
    if path.exists():
        return str(path)
    arrays: dict[str, Any] = {}
    for split, samples in (("train", min(count, LARGEST)), ("test", scene.many)):
        data = load_data(scene.data, split=split, samples=samples, seed=0)
        arrays[f"x_{split}"] = data.x.repeat(factor, axis=2).repeat(factor, axis=3)
        arrays[f"y_{split}"] = data.y if data.y is not None else np.zeros(len(data), np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)
    return str(path)
