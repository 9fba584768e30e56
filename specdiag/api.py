"""The Python API: `load_model`, `load_data`, `analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray
from torch import nn

from specdiag import bundled, plugins
from specdiag.errors import UsageError
from specdiag.jobs import (
    DTYPES,
    Common,
    device_of,
    make_task,
    open_checkpoint,
    open_data,
    open_model,
    run_in_memory,
    settle,
)
from specdiag.loading.datasets import Data
from specdiag.loading.datasets import load_data as _load_data
from specdiag.loading.resolve import Wanted
from specdiag.model import Model, Normalisation, Scaling
from specdiag.options import build_options
from specdiag.runner import Progress

__all__ = ["analyze", "load_data", "load_model", "wrap_model"]


def load_model(
    path: str | Path | None = None,
    arch: str | None = None,
    *,
    arch_args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    space: str = "data",
) -> Model:
    """A checkpoint as a frozen model in input space.

    path: the checkpoint; None takes the bundled one. arch, mean, std, normalise: as `--arch`, `--mean`, `--std` and
    `--normalise`; what is left out is taken from the checkpoint's metadata. data: a data spec whose samples the model is
    probed on and whose shape it takes, where the metadata name none; without any, random inputs of the architecture's
    usual shape. device: auto, cpu, cuda, ...; dtype: float32 or float64; space: data (inputs as the data set gives
    them) or model (after the normalisation).
    """
    wanted = Wanted(
        arch,
        dict(arch_args or {}),
        normalise,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        data,
    )
    common = Common(wanted=wanted, weights=weights, samples=2, device=device, dtype=dtype, space=space)
    checkpoint, resolved = open_checkpoint(Path(path) if path is not None else bundled.default(), common, {})
    if resolved.data is None:
        common = Common(
            wanted=Wanted(**{**_as_dict(wanted), "data": "random"}),
            weights=weights,
            samples=2,
            device=device,
            dtype=dtype,
            space=space,
        )
        checkpoint, resolved = open_checkpoint(checkpoint.path, common, {})
    samples = open_data(common, resolved, checkpoint.path)
    return open_model(checkpoint, resolved, samples, common)


def wrap_model(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: Scaling | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Model:
    """A network that is already in memory as a frozen model in input space; a copy is made, yours is left alone.

    input_shape: of one sample, without the batch axis; mean, std, normalise as for `load_model`, default none.
    """
    import copy

    kind: Scaling = normalise or ("channel" if mean is not None else "none")
    if dtype not in DTYPES:
        raise UsageError(f"dtype '{dtype}' is neither float32 nor float64.")
    return Model(
        copy.deepcopy(network),
        tuple(input_shape),
        normalisation=Normalisation(kind, tuple(mean or ()), tuple(std or ())),
        device=device_of(device),
        dtype=DTYPES[dtype],
    )


def load_data(
    spec: str,
    *,
    split: str = "test",
    samples: int | None = 200,
    seed: int = 0,
    layout: str | None = None,
    input_shape: Sequence[int] | None = None,
    download: bool = False,
) -> Data:
    """The samples of a data spec such as `digits`, `file.npz` or `cifar10:ROOT`; see `specdiag spectrum --help`."""
    shape = None if input_shape is None else tuple(input_shape)
    return _load_data(
        spec, split=split, samples=samples, seed=seed, layout=layout, input_shape=shape, download=download
    )


def analyze(
    model: Model,
    data: Data,
    analyzer: str,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> xarray.Dataset:
    """Run one analyzer in memory; options are its flags as keyword arguments.

    Returns the arrays with dimension names, coordinates and units; `specdiag.store.provenance(result)` holds metrics,
    settings and warnings.
    """
    declared = plugins.load("analyzer", analyzer)
    built = build_options(declared, options)
    if torch.is_grad_enabled() is False:
        with torch.enable_grad():
            return analyze(
                model, data, analyzer, seed=seed, batch_size=batch_size, progress=progress, **options
            )
    common = Common(seed=seed, batch_size=batch_size)
    built, _ = settle(model, data, declared, built, common)
    return run_in_memory(make_task(model, data, declared, built, common), progress)


def _as_dict(wanted: Wanted) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in ("arch", "arch_args", "normalise", "mean", "std", "data")}
