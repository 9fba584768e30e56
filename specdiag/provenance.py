"""What made the numbers: the settings that decide the bytes of a result, and the record stored with it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import scipy
import torch
import xarray

from specdiag import __version__
from specdiag.loading.datasets import Data, hash_arrays
from specdiag.metrics import summarise
from specdiag.model import Model, ModelInfo, Normalisation
from specdiag.options import json_options
from specdiag.runner import Task, non_finite
from specdiag.schema import Analyzer
from specdiag.store import FORMAT_VERSION, settings_hash, with_provenance
from specdiag.weights import Weights, WeightsTask


def settings_of(task: Task) -> dict[str, Any]:
    """Every setting that decides the bytes of a result; its hash tells two runs apart."""
    model = task.model
    return {
        "analyzer": task.analyzer.name,
        "analyzer_version": task.analyzer.version,
        "options": json_options(task.options),
        "checkpoint": checkpoint_settings(model),
        **({"others": [checkpoint_settings(other) for other in task.others]} if task.others else {}),
        "data": {"split": task.data.split, "samples": len(task.data), "sha256": task.data.sha256},
        "seed": task.seed,
        "chunk": task.chunk,
        **machine_settings(model),
    }


def settings_of_weights(task: WeightsTask) -> dict[str, Any]:
    """As `settings_of`, for an analyzer of weights."""
    weights = task.weights
    given = None if weights.model is None or weights.data_x is None else settings_of_samples(weights)
    return {
        "analyzer": task.analyzer.name,
        "analyzer_version": task.analyzer.version,
        "options": json_options(task.options),
        "checkpoint": identity(weights.info, weights.normalisation, "data"),
        "input_shape": None if weights.input_shape is None else list(weights.input_shape),
        "data": given,
        "seed": task.seed,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def settings_of_samples(weights: Weights) -> dict[str, Any]:
    """The samples that an analyzer of weights was given beside the network."""
    x = weights.data_x
    return {} if x is None else {"samples": len(x), "sha256": hash_arrays(x.cpu().numpy(), None)}


def identity(info: ModelInfo, normalisation: Normalisation, space: str) -> dict[str, Any]:
    """Weights, architecture and normalisation."""
    return {
        "sha256": info.sha256,
        "architecture": info.architecture,
        "arch_args": dict(info.arch_args),
        "normalise": normalisation.kind,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "space": space,
        **({"input_layer": info.input_layer} if info.input_layer else {}),
    }


def checkpoint_settings(model: Model) -> dict[str, Any]:
    """Weights, architecture and normalisation of a model."""
    return identity(model.info, model.normalisation, model.space)


def machine_settings(model: Model) -> dict[str, Any]:
    """Precision, device, threads and library versions."""
    cuda = model.device.type == "cuda"
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(model.device) if cuda else "cpu",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "compile": model.is_compiled,
        "memory_format": "channels_last" if model.channels_last else "contiguous",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {
        "specdiag": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "h5py": h5py.__version__,
    }


def describe(model: Model) -> dict[str, Any]:
    """The checkpoint's part of the record."""
    settings = checkpoint_settings(model)
    trusted = {"trusted": list(model.info.trusted)} if model.info.trusted else {}
    return {
        "path": model.info.path,
        "name": model.info.name,
        "coverage": model.info.coverage,
        **trusted,
        **settings,
    }


def record(
    dataset: xarray.Dataset,
    analyzer: Analyzer,
    settings: Mapping[str, Any],
    *,
    model: Model | None,
    data: Data | None,
    checkpoint: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    train: Mapping[str, Any] | None = None,
) -> xarray.Dataset:
    """The dataset with its metrics, sentence, warnings and everything that made it."""
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "specdiag_version": __version__,
        "analyzer": analyzer.name,
        "analyzer_version": analyzer.version,
        "source": analyzer.source,
        "kind": analyzer.kind,
        "checkpoint": dict(checkpoint)
        if checkpoint is not None
        else describe(model)
        if model is not None
        else {},
        "settings": dict(settings),
        "settings_hash": settings_hash(settings),
        "options": settings.get("options", {}),
        "metrics": summarise(analyzer, dataset, seed=int(settings.get("seed", 0))),
        "train": dict(train if train is not None else model.info.train if model is not None else {}),
        "warnings": warnings(analyzer, dataset),
        "notes": list(notes),
        "sentence": analyzer.sentence(dataset) if analyzer.sentence is not None else "",
        "versions": versions(),
        "device": settings.get("device", "cpu"),
    }
    if data is not None:
        facts["data"] = {
            "spec": data.spec,
            "split": data.split,
            "samples": len(data),
            "total": data.total,
            "sha256": data.sha256,
        }
    return with_provenance(dataset, facts)


def record_weights(dataset: xarray.Dataset, task: WeightsTask, notes: Sequence[str]) -> xarray.Dataset:
    """As `record`, for an analyzer of weights."""
    info = task.weights.info
    known = identity(info, task.weights.normalisation, "data")
    checkpoint = {"path": info.path, "name": info.name, "coverage": info.coverage, **known}
    if info.trusted:
        checkpoint["trusted"] = list(info.trusted)
    settings = settings_of_weights(task)
    return record(
        dataset,
        task.analyzer,
        settings,
        model=None,
        data=None,
        checkpoint=checkpoint,
        notes=notes,
        train=info.train,
    )


def warnings(analyzer: Analyzer, dataset: xarray.Dataset) -> list[dict[str, str]]:
    """Warnings with ids on what a reader of the numbers must know."""
    found = [{"id": "SD201", "text": line} for line in non_finite(analyzer, dataset)]
    if "near_kink" in dataset:
        marked = int((dataset["near_kink"] > 0).sum())
        if marked:
            text = (
                f"{marked} of {dataset.sizes['sample']} samples have an activation within rounding of a kink (near_kink); "
                "their Jacobians can differ between float32 and float64 by more than rounding."
            )
            found.append({"id": "SD202", "text": text})
    if analyzer.checks is not None:
        found += analyzer.checks(dataset)
    return found
