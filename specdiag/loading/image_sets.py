"""Image data sets through torchvision, and folders of images, of which only the chosen ones are decoded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.errors import DataError
from specdiag.loading.datasets import Array, Source

CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "mnist": 10, "fashion-mnist": 10}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CROP = 0.875


def torchvision_set(name: str, root: Path, split: str, download: bool) -> Source:
    """CIFAR-10, CIFAR-100, SVHN, MNIST or Fashion-MNIST in `root`; fetched only when `download`.

    Raises DataError with the ready command when the data are not there.
    """
    from torchvision import datasets

    try:
        # torchvision reports its downloads on stdout, which belongs to results
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            if name == "svhn":
                made: Any = datasets.SVHN(str(root), split=split, download=download)
            else:
                classes = {
                    "cifar10": datasets.CIFAR10,
                    "cifar100": datasets.CIFAR100,
                    "mnist": datasets.MNIST,
                }
                kind = classes.get(name, datasets.FashionMNIST)
                made = kind(str(root), train=split == "train", download=download)
    except Exception as error:
        detail = str(error).split("\n", 1)[0][:120].rstrip(".")
        what = f"{name} is not in {root} ({detail})."
        todo = (
            "Check the network."
            if download
            else f"To fetch it, add --download: --data {name}:{root} --download"
        )
        raise DataError(what, todo) from None
    pixels = np.asarray(made.data)
    labels = np.asarray(made.labels if name == "svhn" else made.targets, dtype=np.int64)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif name != "svhn":
        pixels = pixels.transpose(0, 3, 1, 2)
    return Source(
        len(pixels), lambda index: (pixels[index], labels[index]), image=True, classes=CLASSES[name]
    )


def folder(root: Path, split: str, input_shape: tuple[int, ...] | None) -> Source:
    """Images below `root`, one subfolder per class, in alphabetical order; without subfolders no labels.

    With subfolders `train` and `test` (or `val`) each is its split, else everything is the test split.
    Images of another size than the network's are resized and centre-cropped as ImageNet evaluation does,
    with a note.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", "Check the path after 'folder:'.")
    try:
        base = _split_folder(root, split)
        files, labels, names = _listing(base)
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if not files:
        raise DataError(f"There are no images in {base}.", f"It takes {', '.join(SUFFIXES)} files.")

    def take(index: Array) -> tuple[Array, Array | None]:
        x = _decode([files[number] for number in index], input_shape)
        return x, None if labels is None else labels[index]

    notes: tuple[str, ...] = ()
    if input_shape is not None and not _has_size(files[0], input_shape):
        notes = (f"Images are resized and centre-cropped to {input_shape[1]}x{input_shape[2]}.",)
    return Source(len(files), take, image=True, classes=len(names) or None, notes=notes)


def _split_folder(root: Path, split: str) -> Path:
    parts = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
    if not any((root / name).is_dir() for names in parts.values() for name in names):
        if split != "test":
            raise DataError(f"{root} has no {split} split.", f"Put its images below {root}/{split}.")
        return root
    for name in parts[split]:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no {split} split.", f"Put its images below {root}/{parts[split][0]}.")


def _listing(base: Path) -> tuple[list[Path], Array | None, list[str]]:
    classes = sorted(
        entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        return sorted(entry for entry in base.iterdir() if entry.suffix.lower() in SUFFIXES), None, []
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(entry for entry in (base / name).rglob("*") if entry.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int64), classes


def _decode(files: list[Path], input_shape: tuple[int, ...] | None) -> Array:
    from PIL import Image

    grey = input_shape is not None and len(input_shape) == 3 and input_shape[0] == 1
    rows: list[Array] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = opened.convert("L" if grey else "RGB")
        except Exception as error:
            detail = str(error).split("\n", 1)[0][:100].rstrip(".")
            raise DataError(
                f"{file} cannot be read as an image ({detail}).", "Repair or remove it."
            ) from None
        if input_shape is not None and _is_image(input_shape):
            image = _fit(image, input_shape[1], input_shape[2])
        pixels = np.asarray(image, dtype=np.uint8)
        rows.append(pixels[None] if grey else pixels.transpose(2, 0, 1))
        if rows[-1].shape != rows[0].shape:
            what = (
                f"{file} is {image.width}x{image.height}, others are {rows[0].shape[2]}x{rows[0].shape[1]}."
            )
            raise DataError(
                what, "Bring all images to one size, or name an architecture with a known input size."
            )
    return np.stack(rows)


def _fit(image: Any, height: int, width: int) -> Any:
    if (image.height, image.width) == (height, width):
        return image
    from PIL import Image

    scale = max(height / image.height, width / image.width) / CROP
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _is_image(input_shape: tuple[int, ...] | None) -> bool:
    return input_shape is not None and len(input_shape) == 3


def _has_size(file: Path, input_shape: tuple[int, ...] | None) -> bool:
    from PIL import Image

    if input_shape is None or len(input_shape) != 3:
        return True
    try:
        with Image.open(file) as image:
            return (image.height, image.width) == tuple(input_shape[1:])
    except Exception:
        return True
