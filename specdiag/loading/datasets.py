"""From a data spec to samples and labels. Data are never guessed: what is not clear is an explained error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.errors import DataError, suggest
from specdiag.sampling import Draws, choose

Array = np.ndarray[Any, np.dtype[Any]]
SPLITS = ("train", "test")
DIGITS_TRAIN = 1400
RANDOM_SAMPLES = 200
SLACK = 1e-6
_BLOCK = 512
ROOTED = ("cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "folder")


@dataclass(frozen=True, slots=True)
class Source:
    """One split of a data set before samples are taken from it.

    total: number of samples; take(index) -> (x, y): x (n, ...) float32 or uint8, y (n,) int64 or None;
    image: x is NCHW in [0, 1] (uint8: 0 to 255); classes: number of classes where known.
    """

    total: int
    take: Callable[[Array], tuple[Array, Array | None]]
    image: bool
    classes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """Samples in the data set's own space.

    x: (N, ...) float32, images NCHW in [0, 1]; y: (N,) int64 labels or None; index: (N,) int64 place of
    each sample in its split of `total` samples; sha256: of the chosen x and y; low, high: range that x
    is in by definition (-inf, inf for features); classes: number of classes where known; notes: remarks
    for the user; splits: the split of each sample where `split` is `both`, else None.
    """

    x: np.ndarray[Any, np.dtype[np.float32]]
    y: np.ndarray[Any, np.dtype[np.int64]] | None
    index: np.ndarray[Any, np.dtype[np.int64]]
    split: str
    spec: str
    total: int
    sha256: str
    low: float
    high: float
    classes: int | None
    notes: tuple[str, ...]
    splits: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])


def load_data(
    spec: str,
    *,
    split: str = "test",
    samples: int | None = 200,
    seed: int = 0,
    layout: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    download: bool = False,
) -> Data:
    """The samples to analyse.

    spec: `digits`, `FILE.npz`, `cifar10:ROOT` (cifar100, svhn, mnist, fashion-mnist, folder) or
    `random`; samples: how many, chosen by `sampling.choose`, all for None; layout: `nchw` or `nhwc`
    where a file's axes do not tell; input_shape: what the network takes, without the batch axis;
    download: torchvision may fetch the data set; split: `train`, `test`, or `both` (so many samples of each, train
    first). Raises DataError.
    """
    if split == "both":
        halves = [
            load_data(
                spec,
                split=half,
                samples=samples,
                seed=seed,
                layout=layout,
                input_shape=input_shape,
                download=download,
            )
            for half in SPLITS
        ]
        return _joined(*halves)
    if split not in SPLITS:
        raise DataError(f"There is no split '{split}'.", suggest(split, (*SPLITS, "both")))
    if layout not in (None, "nchw", "nhwc"):
        raise DataError(f"There is no layout '{layout}'.", "It is nchw or nhwc.")
    if samples is not None and samples < 1:
        raise DataError(f"{samples} samples cannot be analysed.", "Pass --samples 1 or more.")
    source = _source(spec, split, samples, seed, layout, input_shape, download)
    if source.total == 0:
        raise DataError(f"{spec} has no samples in its {split} split.", "Choose another --split or data set.")
    index = choose(source.total, source.total if samples is None else samples, seed, split)
    notes = list(source.notes)
    if samples is not None and samples > source.total:
        notes.append(
            f"{samples:,} samples were asked for; {spec} ({split}) has {source.total:,}: all are taken."
        )
    x, y = _taken(source, index)
    check_finite(x, index, spec)
    if source.image:
        check_range(x, index, spec)
    low, high = (0.0, 1.0) if source.image else (-np.inf, np.inf)
    classes = source.classes if source.classes or y is None else int(y.max()) + 1
    return Data(x, y, index, split, spec, source.total, hash_arrays(x, y), low, high, classes, tuple(notes))


def _joined(first: Data, second: Data) -> Data:
    """Both splits as one set of samples."""
    if first.x.shape[1:] != second.x.shape[1:]:
        raise DataError(
            f"The samples of {first.spec} have shape {first.x.shape[1:]} in its {first.split} split and "
            f"{second.x.shape[1:]} in its {second.split} split.",
            "Analyse one split.",
        )
    x = np.concatenate([first.x, second.x])
    y = None if first.y is None or second.y is None else np.concatenate([first.y, second.y])
    known = [count for count in (first.classes, second.classes) if count is not None]
    return Data(
        x,
        y,
        np.concatenate([first.index, second.index]),
        "both",
        first.spec,
        first.total + second.total,
        hash_arrays(x, y),
        min(first.low, second.low),
        max(first.high, second.high),
        max(known) if known else None,
        tuple(dict.fromkeys((*first.notes, *second.notes))),
        (first.split,) * len(first) + (second.split,) * len(second),
    )


def hash_arrays(x: Array, y: Array | None) -> str:
    """SHA-256 of samples and labels with their shapes and types."""
    digest = hashlib.sha256()
    for array in (x, y):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_finite(x: Array, index: Array, spec: str) -> None:
    """Refuse NaN and infinite values; names the first sample that has one."""
    for row, number in zip(x, index, strict=True):
        if not np.isfinite(row).all():
            bad = "NaN" if np.isnan(row).any() else "an infinite value"
            raise DataError(f"{spec}: sample {number} holds {bad}.", "Repair or remove it.")


def check_range(x: Array, index: Array, spec: str) -> None:
    """Refuse images outside [0, 1]; says the likely cause. x (N, ...)."""
    low, high = float(x.min()), float(x.max())
    if low >= -SLACK and high <= 1 + SLACK:
        np.clip(x, 0.0, 1.0, out=x)
        return
    flat = x.reshape(len(x), -1)
    first = index[int(np.argmax((flat.min(1) < -SLACK) | (flat.max(1) > 1 + SLACK)))]
    what = f"{spec}: values run from {low:.4g} to {high:.4g}, outside [0, 1] (first in sample {first})."
    if low >= 0 and high <= 255 and high > 2:
        raise DataError(what, "They look like pixels of 0 to 255: store them as uint8, or divide by 255.")
    todo = "They look normalised already: store the images in [0, 1] and pass --mean and --std instead."
    raise DataError(what, todo)


def _source(
    spec: str,
    split: str,
    samples: int | None,
    seed: int,
    layout: str | None,
    input_shape: tuple[int, ...] | None,
    download: bool,
) -> Source:
    name, colon, root = spec.partition(":")
    if spec == "digits":
        return _digits(split)
    if spec == "random":
        return _random(samples or RANDOM_SAMPLES, seed, input_shape)
    if colon and name in ROOTED:
        from specdiag.loading import image_sets

        if not root:
            raise DataError(f"'{spec}' does not say where the data are.", f"Write {name}:FOLDER.")
        if name == "folder":
            return image_sets.folder(Path(root), split, input_shape)
        return image_sets.torchvision_set(name, Path(root), split, download)
    if name in ROOTED:
        raise DataError(f"'{spec}' does not say where the data are.", f"Write {name}:FOLDER.")
    if Path(spec).is_file() or spec.endswith(".npz"):
        from specdiag.loading import npz

        return npz.source(Path(spec), split, layout, input_shape)
    if Path(spec).is_dir():
        raise DataError(f"'{spec}' is a folder.", f"For images in it write folder:{spec}.")
    forms = ["digits", "random", "FILE.npz", *(f"{entry}:FOLDER" for entry in ROOTED)]
    hint = suggest(name, ["digits", "random", *ROOTED])
    raise DataError(
        f"There are no data named '{spec}'.", hint if hint.startswith("Did") else f"Write {', '.join(forms)}."
    )


def _digits(split: str) -> Source:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = Draws(0).generator("digits/split").permutation(len(images))
    part = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]
    x = (images[part].reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    y = labels[part].astype(np.int64)
    return Source(len(part), lambda index: (x[index], y[index]), image=True, classes=10)


def _random(samples: int, seed: int, input_shape: tuple[int, ...] | None) -> Source:
    if input_shape is None:
        what = "Random data need the shape of an input, and the architecture does not say it."
        raise DataError(what, "Name data instead: --data FILE.npz.")
    shape = tuple(input_shape)

    def take(index: Array) -> tuple[Array, None]:
        return Draws(seed).uniform("data/random", index, shape).astype(np.float32), None

    return Source(samples, take, image=True)


def _taken(source: Source, index: Array) -> tuple[np.ndarray[Any, np.dtype[np.float32]], Array | None]:
    """Samples as float32, contiguous, uint8 divided by 255; and their labels. In blocks: data may be large."""
    x: Array | None = None
    labels = []
    for start in range(0, len(index), _BLOCK):
        raw, y = source.take(index[start : start + _BLOCK])
        if x is None:
            x = np.empty((len(index), *raw.shape[1:]), np.float32)
        elif raw.shape[1:] != x.shape[1:]:
            raise DataError(
                f"Sample {index[start]} has shape {raw.shape[1:]}, those before it {x.shape[1:]}.",
                "Store all samples with one shape.",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            x[start : start + _BLOCK] = raw
        if raw.dtype == np.uint8:
            x[start : start + _BLOCK] /= np.float32(255)
        if y is not None:
            labels.append(y)
    if x is None:
        raise DataError("No samples were chosen.", "Pass --samples 1 or more.")
    return x, np.concatenate(labels) if labels else None
