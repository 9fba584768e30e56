"""Streams samples through one analyzer: chunks, padding, random draws, journal, out-of-memory back-off.

The chunk grid is a pure function of shapes and options, so the same settings give the same bytes however the run was
interrupted or split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray

from specdiag.errors import ModelError, NothingAnalysed, SpecdiagError
from specdiag.loading.datasets import Data
from specdiag.model import Model
from specdiag.sampling import CHUNK_MULTIPLE, Batch, Draws
from specdiag.schema import Analyzer

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[int, int], None]
LARGEST_CHUNK = 64
CHUNK_BYTES = 2**29


class Keeper(Protocol):
    """What keeps finished chunks: the journal, or memory."""

    def finished(self) -> Sequence[int]:
        """Numbers of the chunks that are done."""

    def read(self, chunk: int) -> dict[str, Array]:
        """The arrays of one chunk."""

    def write(self, chunk: int, arrays: Mapping[str, Array]) -> None:
        """Keep the arrays of one chunk."""


class MemoryKeeper:
    """Keeps finished chunks in memory, for runs that write no file."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[str, Array]] = {}

    def finished(self) -> Sequence[int]:
        """Numbers of the chunks that are done."""
        return tuple(self._chunks)

    def read(self, chunk: int) -> dict[str, Array]:
        """The arrays of one chunk."""
        return self._chunks[chunk]

    def write(self, chunk: int, arrays: Mapping[str, Array]) -> None:
        """Keep the arrays of one chunk."""
        self._chunks[chunk] = dict(arrays)


class OutOfMemory(SpecdiagError):
    """The chunk did not fit; the task starts again on a smaller grid."""


# no slots: `facts` is kept once it was needed
@dataclass(frozen=True)
class Task:
    """One analyzer over one model and one set of samples; others: further models, for kind `cross`."""

    model: Model
    data: Data
    analyzer: Analyzer
    options: Any
    seed: int
    chunk: int
    others: tuple[Model, ...] = ()

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-len(self.data.x) // self.chunk)

    @functools.cached_property
    def facts(self) -> dict[str, float]:
        """`data_facts` of all samples: one pass over them, however many calls the chunks are spread over."""
        return data_facts(self.model, self.data)

    def bounds(self, number: int) -> tuple[int, int]:
        """First and one past the last sample position of a chunk."""
        start = number * self.chunk
        return start, min(start + self.chunk, len(self.data.x))


def chunk_size(model: Model, analyzer: Analyzer, options: Any, asked: int | None = None) -> int:
    """Samples per chunk: a multiple of 8 up to 64 whose activations and arrays stay near 512 MB.

    `asked` is rounded up to a multiple of 8. A network so large that even 8 samples are far beyond goes one by one.
    Depends on shapes and options only, never on free memory or the number of samples.
    """
    if asked is not None:
        return -(-asked // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    item = 8 if model.dtype == torch.float64 else 4
    sizes = {"K": model.outputs, "D": model.inputs, "F": model.facts.features}
    extra = analyzer.memory(options, sizes) if analyzer.memory is not None else 0
    # activations are held twice: forward, and for the backward pass
    per_sample = item * (2 * model.facts.activations + extra)
    fitting = CHUNK_BYTES // max(1, per_sample)
    if fitting < 2:
        return 1
    return int(min(LARGEST_CHUNK, max(CHUNK_MULTIPLE, fitting // CHUNK_MULTIPLE * CHUNK_MULTIPLE)))


def data_facts(model: Model, data: Data) -> dict[str, float]:
    """Figures of all chosen samples that options depend on: mean and median of ||x||_2, and the data range."""
    # allocated before the loop: small results kept between large temporary ones fragment the heap
    joined = np.zeros(max(1, len(data.x)))
    for start in range(0, len(data.x), 256):
        x = model.to_model_space(torch.from_numpy(data.x[start : start + 256]).to(model.device, model.dtype))
        joined[start : start + 256] = torch.linalg.vector_norm(x.double().flatten(1), dim=1).cpu().numpy()
    return {
        "mean_norm": float(joined.mean()),
        "median_norm": float(np.median(joined)),
        "low": float(data.low),
        "high": float(data.high),
    }


def run_samples(
    task: Task, keeper: Keeper, progress: Progress | None = None, only: Sequence[int] | None = None
) -> None:
    """Compute the chunks that `keeper` does not hold yet (those in `only`, where given)."""
    done = set(keeper.finished())
    wanted = range(task.count) if only is None else only
    finished = sum(task.bounds(number)[1] - task.bounds(number)[0] for number in wanted if number in done)
    total = sum(task.bounds(number)[1] - task.bounds(number)[0] for number in wanted)
    if progress is not None:
        progress(finished, total)
    for number in wanted:
        if number in done:
            continue
        keeper.write(number, compute_chunk(task, number, task.facts))
        start, stop = task.bounds(number)
        finished += stop - start
        if progress is not None:
            progress(finished, total)


def compute_chunk(task: Task, number: int, facts: Mapping[str, float]) -> dict[str, Array]:
    """The arrays of one chunk, sample first, as numpy arrays."""
    start, stop = task.bounds(number)
    batch = make_batch(task.model, task.data, start, stop, task.seed, facts).padded(task.chunk)
    try:
        found = _compute(task, batch)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("The device is out of memory.", "Use a smaller --batch-size.") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory("The machine is out of memory.", "Use a smaller --batch-size.") from error
        raise
    arrays = {}
    for name, value in found.items():
        array = as_numpy(value)
        if task.analyzer.kind == "reduce" or name in task.analyzer.coordinates:
            arrays[name] = array
            continue
        if name not in task.analyzer.arrays:
            raise ModelError(f"Analyzer '{task.analyzer.name}' returns an undeclared array '{name}'.")
        # what has no samples is of the network, the same in every chunk
        arrays[name] = array[: stop - start] if "sample" in task.analyzer.arrays[name].dims else array
    return arrays


def _compute(task: Task, batch: Batch) -> dict[str, Any]:
    compute: Any = task.analyzer.compute
    if task.analyzer.kind == "cross":
        found: dict[str, Any] = compute((task.model, *task.others), batch, task.options)
        return found
    if task.analyzer.kind == "reduce":
        # padding would be counted in a sum: the state is updated with the real samples alone
        return dict(
            compute.update(
                compute.start(task.model, task.options), task.model, batch.unpadded(), task.options
            )
        )
    return dict(compute(task.model, batch, task.options))


def make_batch(
    model: Model, data: Data, start: int, stop: int, seed: int, facts: Mapping[str, float]
) -> Batch:
    """Samples start..stop on the model's device, in its dtype, memory format and space."""
    x = model.to_model_space(model.to_input(data.x[start:stop]))
    y = None if data.y is None else torch.from_numpy(data.y[start:stop]).to(model.device)
    return Batch(x, y, data.index[start:stop], data.split, Draws(seed), facts)


class Grid(Protocol):
    """What assembling needs to know of a task: all but the model and the values of the data."""

    @property
    def analyzer(self) -> Analyzer:
        """The declaration of the analyzer."""

    @property
    def options(self) -> Any:
        """Its options."""

    @property
    def data(self) -> Data:
        """The samples."""

    @property
    def count(self) -> int:
        """Number of chunks."""


def assemble(task: Grid, keeper: Keeper) -> xarray.Dataset:
    """All chunks as one dataset, with dimension names, units and the sample coordinate."""
    parts = [keeper.read(number) for number in range(task.count)]
    if not parts or not len(task.data.x):
        raise NothingAnalysed("No sample was analysed.", "Check --samples and --split.")
    if task.analyzer.kind == "reduce":
        return _reduced(task, parts)
    variables, coordinates = {}, {}
    for name, first in parts[0].items():
        if name in task.analyzer.coordinates:
            coordinates[name] = first
        elif "sample" in task.analyzer.arrays[name].dims:
            variables[name] = np.concatenate([part[name] for part in parts])
        else:
            variables[name] = first
    dataset = to_dataset(task.analyzer, variables, coordinates, task.data.index)
    dataset = dataset if task.data.splits is None else _by_split(dataset, task.data)
    return dataset if task.analyzer.finish is None else task.analyzer.finish(dataset)


def _by_split(dataset: xarray.Dataset, data: Data) -> xarray.Dataset:
    """Samples of two splits numbered through, with `split` and `index` as coordinates."""
    return dataset.assign_coords(
        sample=("sample", np.arange(len(data)), {"long_name": "number of the sample in this run"}),
        split=("sample", np.asarray(data.splits), {"long_name": "split of the data set"}),
        index=("sample", data.index, {"long_name": "index of the sample in its split"}),
    )


def _reduced(task: Grid, parts: Sequence[dict[str, Array]]) -> xarray.Dataset:
    """Chunk states merged in grid order, which fixes the rounding, and finished."""
    compute: Any = task.analyzer.compute
    state = functools.reduce(lambda left, right: compute.merge(left, right, task.options), parts)
    found = {name: as_numpy(value) for name, value in compute.finish(state, task.options).items()}
    coordinates = {name: found.pop(name) for name in list(found) if name in task.analyzer.coordinates}
    return to_dataset(task.analyzer, found, coordinates, None)


def to_dataset(
    analyzer: Analyzer, variables: Mapping[str, Array], coordinates: Mapping[str, Array], index: Array | None
) -> xarray.Dataset:
    """Arrays with the dimension names, units and meanings that the analyzer declares."""
    data_vars, coords = {}, {}
    for name, array in variables.items():
        spec = analyzer.arrays[name]
        if len(spec.dims) != array.ndim:
            raise ModelError(
                f"Array '{name}' of '{analyzer.name}' has {array.ndim} dimensions, not {spec.dims}."
            )
        data_vars[name] = (spec.dims, array, {"units": spec.unit, "long_name": spec.doc})
        for dim, size in zip(spec.dims, array.shape, strict=True):
            if dim == "rank":
                coords["rank"] = (
                    "rank",
                    np.arange(1, size + 1),
                    {"long_name": "rank, 1 = largest singular value"},
                )
    for name, array in coordinates.items():
        coords[name] = (name, array, {"long_name": analyzer.coordinates[name]})
    if index is not None:
        coords["sample"] = (
            "sample",
            np.asarray(index, np.int64),
            {"long_name": "index of the sample in its split"},
        )
    return xarray.Dataset(data_vars, coords)


def non_finite(analyzer: Analyzer, dataset: xarray.Dataset) -> list[str]:
    """One line per set of samples with NaN (or unexpected infinite) entries: how many, the first by index, the arrays."""
    arrays: dict[tuple[Any, ...], list[str]] = {}
    for name, array in dataset.data_vars.items():
        if array.dtype.kind != "f" or "sample" not in array.dims:
            continue
        values = array.transpose("sample", ...).values
        wrong = np.isnan(values) if analyzer.arrays[str(name)].may_be_infinite else ~np.isfinite(values)
        bad = wrong.reshape(len(values), -1).any(1)
        if bad.any():
            arrays.setdefault(tuple(np.flatnonzero(bad).tolist()), []).append(str(name))
    lines = []
    for places, names in arrays.items():
        which = dataset["sample"].values[list(places)]
        listed = ", ".join(str(entry) for entry in which[:5]) + (", ..." if len(which) > 5 else "")
        lines.append(
            f"{len(which)} of {dataset.sizes['sample']} samples have NaN or infinite {', '.join(names)} (sample {listed}); "
            "left out of the metrics."
        )
    return lines


def as_numpy(value: Any) -> Array:
    """A tensor or array as a C-contiguous numpy array on the CPU."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.ascontiguousarray(value)
