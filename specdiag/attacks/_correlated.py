"""Gaussian noise with a covariance: exponential in the distance of two pixels, that of a data set, or from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specdiag.errors import DataError, UsageError
from specdiag.loading.datasets import load_data
from specdiag.model import Model

LARGEST = 4096
DATA_SAMPLES = 10_000
# share of the mean variance that keeps a covariance of deficient rank positive definite
JITTER = 1e-10

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """A root L of a covariance L L^T whose mean diagonal is 1: L = channels (x) pixels, or `pixels` alone.

    channels: (C, C) or None; pixels: (D / C, D / C) or (D, D); float64.
    """

    pixels: torch.Tensor
    channels: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """D."""
        return len(self.pixels) * (1 if self.channels is None else len(self.channels))

    def times(self, drawn: torch.Tensor) -> torch.Tensor:
        """L g for each row g of `drawn` (N, D), row by row, so that a row does not depend on its company."""
        if self.channels is None:
            return torch.stack([self.pixels @ row for row in drawn])
        count = len(self.channels)
        rows = [(self.channels @ row.reshape(count, -1) @ self.pixels.T).reshape(-1) for row in drawn]
        return torch.stack(rows)


@lru_cache(maxsize=4)
def exponential_root(shape: tuple[int, ...], decay_length: float, channel_factor: float) -> Root:
    """A root of Sigma = exp(-r / decay_length) within a channel, for inputs of a shape (C, H, W).

    r: Euclidean distance of two pixels; between two channels Sigma is channel_factor times that. Inputs that
    are no images, of one axis, have their distance along it.
    """
    space = shape[1:] if len(shape) > 1 else shape
    channels = shape[0] if len(shape) > 1 else 1
    count = math.prod(space)
    if count > LARGEST:
        raise UsageError(
            f"Correlated noise is made for up to {LARGEST} pixels, not {count}.", "Use smaller images."
        )
    axes = [torch.arange(side, dtype=torch.float64) for side in space]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(len(space), -1).T
    pixels = torch.exp(-torch.cdist(places, places) / decay_length)
    between = torch.full((channels, channels), channel_factor, dtype=torch.float64)
    between.fill_diagonal_(1.0)
    return Root(_root(pixels), _root(between))


def root_of(covariance: torch.Tensor) -> Root:
    """A root L of a covariance (D, D) scaled to a mean diagonal of 1; raises DataError where it is none."""
    matrix = (covariance + covariance.T).double() / 2
    size = float(matrix.diagonal().mean())
    if not size > 0 or not bool(torch.isfinite(matrix).all()):
        raise DataError("The covariance has no positive diagonal.", "Give a covariance matrix.")
    return Root(_root(matrix / size))


def data_root(x: torch.Tensor) -> Root:
    """A root of the covariance of samples (N, ...), mean diagonal 1."""
    flat = x.double().flatten(1)
    _check_size(flat.shape[1])
    centred = flat - flat.mean(0)
    return root_of(centred.T @ centred / len(flat))


@lru_cache(maxsize=2)
def root_for(covariance: str, model: Model) -> Root:
    """A root for `data` (the training split of the data set that the model names) or for a file."""
    if covariance == "data":
        return _root_of_the_models_data(model)
    return root_of(torch.from_numpy(_from_file(Path(covariance), model.inputs)))


def _root_of_the_models_data(model: Model) -> Root:
    name = getattr(getattr(model, "info", None), "data", "")
    todo = "Pass --covariance exponential or a file with the matrix."
    if not name or name == "random":
        raise UsageError("The checkpoint names no data set whose covariance could be taken.", todo)
    if model.space != "data":
        raise UsageError("The covariance of the data is that of data space.", "Pass --space data.")
    _check_size(model.inputs)
    data = load_data(name, split="train", samples=DATA_SAMPLES, input_shape=model.input_shape)
    return data_root(torch.from_numpy(data.x))


def _from_file(path: Path, inputs: int) -> Numbers:
    """A matrix (D, D) in a .npy file, in `covariance` of a .npz file, or in the results of `specdiag covariance`."""
    if not path.is_file():
        raise UsageError(
            f"--covariance {path}: there is no such file.",
            "It is exponential, data, or a .npy, .npz or results file.",
        )
    try:
        if path.suffix == ".h5":
            import h5py

            with h5py.File(path) as stored:
                matrix = stored["covariance/second_moments"][:]
        else:
            loaded = np.load(path, allow_pickle=False)
            matrix = loaded if path.suffix == ".npy" else loaded["covariance"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} holds no covariance ({type(error).__name__}).",
            "A .npy file holds the matrix, a .npz file has it as `covariance`, a results file by "
            "`specdiag covariance --form full`.",
        ) from None
    if matrix.shape != (inputs, inputs):
        raise DataError(
            f"The covariance in {path} has shape {tuple(matrix.shape)}, not ({inputs}, {inputs}).",
            "Give one of the network's inputs.",
        )
    return np.asarray(matrix, np.float64)


def _check_size(inputs: int) -> None:
    if inputs > LARGEST:
        raise UsageError(
            f"A full covariance is taken for up to {LARGEST} inputs, not {inputs}.",
            "Pass --covariance exponential.",
        )


def _root(matrix: torch.Tensor) -> torch.Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(JITTER * matrix.diagonal().mean())
    root: torch.Tensor
    root, failed = torch.linalg.cholesky_ex(shifted)
    if not int(failed):
        return root
    values, vectors = torch.linalg.eigh(matrix)
    if float(values[0]) < -1e-6 * float(values[-1]):
        raise DataError(
            f"The covariance has a negative eigenvalue, {float(values[0]):.3g}.", "Give a covariance matrix."
        )
    half: torch.Tensor = vectors * values.clamp_min(0).sqrt()
    return half
