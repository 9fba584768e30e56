"""Data in .npz files: `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`. Nothing pickled is loaded."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.errors import DataError
from specdiag.loading.datasets import Array, Source

CHANNELS = (1, 3, 4)
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OSError,
    KeyError,
    NotImplementedError,
    RuntimeError,
)


def source(path: Path, split: str, layout: str | None, input_shape: tuple[int, ...] | None) -> Source:
    """One split of an .npz file.

    `x` alone is the test split; with `x_test` beside it, or `x_train`, each split is its own.
    Four-dimensional x are images, three-dimensional ones grey images (N, H, W) unless the network takes
    that shape, two-dimensional ones features. Raises DataError.
    """
    arrays = _open(path)
    try:
        x_name, y_name = _names(arrays, path, split)
        x, y = _read(arrays, x_name, path), _read(arrays, y_name, path) if y_name else None
    finally:
        arrays.close()
    notes: tuple[str, ...] = ()
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: '{x_name}' holds {x.dtype}, not numbers.", "Store uint8 or float images.")
    images = x.ndim == 4 or (x.ndim == 3 and tuple(x.shape[1:]) != tuple(input_shape or ()))
    if x.ndim < 2:
        raise DataError(
            f"{path}: '{x_name}' has shape {x.shape}.", "Store samples along the first axis: (N, ...)."
        )
    if images:
        x = x[:, None] if x.ndim == 3 else to_nchw(x, path, layout, input_shape)
    elif x.dtype == np.uint8:
        # features of 0 to 255 stay what they are: only images have a declared range
        x = x.astype(np.float32)
    labels, note = _labels(y, len(x), path)
    notes = (note,) if note else ()
    return Source(
        len(x),
        lambda index: (x[index], None if labels is None else labels[index]),
        image=images,
        classes=None if labels is None or not len(labels) else int(labels.max()) + 1,
        notes=notes,
    )


def to_nchw(x: Array, path: Path, layout: str | None, input_shape: tuple[int, ...] | None) -> Array:
    """Images as (N, C, H, W): by `layout`, by which axis holds 1, 3 or 4, and by the network's input."""
    if layout is None:
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        wanted = tuple(input_shape or ())
        as_is, moved = tuple(x.shape[1:]) == wanted, (x.shape[3], *x.shape[1:3]) == wanted
        if as_is != moved:
            layout = "nchw" if as_is else "nhwc"
        elif first != last and not (as_is and moved):
            layout = "nchw" if first else "nhwc"
        else:
            what = f"{path}: images of shape {tuple(x.shape[1:])} could have their channels first or last."
            raise DataError(what, "Pass --layout nchw or --layout nhwc.")
    return x if layout == "nchw" else x.transpose(0, 3, 1, 2)


def _open(path: Path) -> Any:
    if not path.is_file():
        near = sorted(path.parent.glob("*.npz"))[:3] if path.parent.is_dir() else []
        hint = f"In that folder: {', '.join(entry.name for entry in near)}." if near else "Check the path."
        raise DataError(f"There is no file {path}.", hint)
    try:
        arrays = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise _unreadable(path, error) from None
    if not hasattr(arrays, "files"):
        raise DataError(f"{path} holds one unnamed array.", "Store it with np.savez(FILE, x=..., y=...).")
    return arrays


def _names(arrays: Any, path: Path, split: str) -> tuple[str, str | None]:
    names = set(arrays.files)
    prefixed = [part for part in ("train", "test") if f"x_{part}" in names]
    if f"x_{split}" in names:
        return f"x_{split}", f"y_{split}" if f"y_{split}" in names else None
    if "x" in names and split == "test":
        return "x", "y" if "y" in names else None
    if "x" in names or prefixed:
        have = prefixed or ["test"]
        what = f"{path} has no {split} split (it has {', '.join(sorted(names))})."
        raise DataError(what, f"Pass --split {have[0]}, or store x_{split} and y_{split}.")
    what = f"{path} has no array 'x' (it has {', '.join(sorted(names)[:8]) or 'none'})."
    raise DataError(what, "Store the samples as x and the labels as y: np.savez(FILE, x=x, y=y).")


def _read(arrays: Any, name: str, path: Path) -> Array:
    try:
        array: Array = arrays[name]
    except (*DAMAGED, MemoryError) as error:
        if "allow_pickle" in str(error):
            what = f"{path}: '{name}' is an array of Python objects, which only executing code can load."
            raise DataError(what, "Store it as a numeric array.") from None
        raise _unreadable(path, error) from None
    return array


def _labels(y: Array | None, samples: int, path: Path) -> tuple[Array | None, str]:
    """Labels as (N,) int64, and a note where y is something else (regression targets, one-hot rows)."""
    if y is None:
        return None, ""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if len(y) != samples:
        raise DataError(f"{path}: {samples} samples but {len(y)} labels.", "Store one label for each sample.")
    if y.ndim != 1 or y.dtype.kind not in "iuf" or (y.dtype.kind == "f" and not (y == np.round(y)).all()):
        return (
            None,
            f"{path}: y ({y.dtype}, shape {y.shape}) is not one whole number per sample; taken as no labels.",
        )
    labels = y.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(
            f"{path}: sample {int(np.argmin(labels))} has the label {labels.min()}.", "Labels start at 0."
        )
    return labels, ""


def _unreadable(path: Path, error: BaseException) -> DataError:
    detail = (str(error).split("\n", 1)[0] or type(error).__name__)[:120].rstrip(".")
    return DataError(f"{path} cannot be read as .npz: {detail}.", "Copy or write it again.")
