"""One job: one checkpoint through one analyzer, into its group of the results file.

Continues an interrupted run from its journal, recognises a finished one, and never mixes settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xarray

from specdiag.errors import ArchitectureError, ResultsError, UsageError
from specdiag.journal import Journal, differences, discard
from specdiag.loading import architectures
from specdiag.loading.checkpoints import Checkpoint, read_checkpoint
from specdiag.loading.datasets import Data, load_data
from specdiag.loading.resolve import Resolved, Wanted, resolve
from specdiag.model import Model, ModelInfo, Normalisation, Space
from specdiag.provenance import record, settings_of
from specdiag.runner import OutOfMemory, Progress, Task, assemble, chunk_size, run_samples
from specdiag.schema import Analyzer
from specdiag.store import groups, locked, provenance, read_group, settings_hash, write_group

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every analyzer command shares; None where they are left out."""

    wanted: Wanted = field(default_factory=Wanted)
    weights: str | None = None
    split: str = "test"
    samples: int = 200
    seed: int = 0
    layout: str | None = None
    download: bool = False
    device: str = "auto"
    dtype: str = "float32"
    space: str = "data"
    threads: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job ended with: the stored dataset, its file, and whether anything had to be computed."""

    dataset: xarray.Dataset
    path: Path | None
    status: Literal["computed", "continued", "already there"]


def device_of(name: str) -> str:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used: {reason}", "Use --device cpu.") from None
    return name


def open_checkpoint(
    path: Path, common: Common, config: Mapping[str, Any], *, weights_only: bool = False
) -> tuple[Checkpoint, Resolved]:
    """Read a checkpoint and settle what it is to be loaded as."""
    checkpoint = read_checkpoint(path, common.weights)
    return checkpoint, resolve(checkpoint, common.wanted, config, weights_only=weights_only)


def open_data(common: Common, resolved: Resolved, where: Path) -> Data:
    """The samples that the options name, or those of the checkpoint's metadata."""
    if resolved.data is None:
        raise UsageError(
            f"{where} does not say which data it was made for.",
            "Pass --data digits, --data FILE.npz, --data cifar10:ROOT, --data folder:ROOT or --data random.",
        )
    return load_data(
        resolved.data,
        split=common.split,
        samples=common.samples,
        seed=common.seed,
        layout=common.layout,
        input_shape=resolved.input_shape,
        download=common.download,
    )


def open_model(checkpoint: Checkpoint, resolved: Resolved, data: Data, common: Common) -> Model:
    """Build the network, load its weights strictly, freeze, move and probe it on two of the samples."""
    if resolved.architecture is None:
        raise ArchitectureError(
            f"{checkpoint.path} holds weights but no architecture.", "Pass it with --arch."
        )
    spec, args = resolved.architecture.spec, resolved.architecture.args
    if common.dtype not in DTYPES:
        raise UsageError(f"--dtype: '{common.dtype}' is neither float32 nor float64.")
    if common.space not in ("data", "model"):
        raise UsageError(f"--space: '{common.space}' is neither data nor model.")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, coverage = architectures.network_for(checkpoint.tensors, spec, args)
    info = ModelInfo(
        name=checkpoint.path.stem,
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        architecture=spec,
        arch_args=args,
        train=resolved.train,
        data=resolved.data or "",
        coverage=str(coverage),
    )
    return Model(
        network,
        tuple(data.x.shape[1:]),
        normalisation=Normalisation(resolved.normalise, resolved.mean, resolved.std),
        info=info,
        device=device_of(common.device),
        dtype=DTYPES[common.dtype],
        space=cast(Space, common.space),
        factory=lambda: architectures.build(spec, args),
        example=torch.from_numpy(data.x[:2]),
    )


def make_task(model: Model, data: Data, analyzer: Analyzer, options: Any, common: Common) -> Task:
    """The task with its chunk grid."""
    chunk = chunk_size(model, analyzer, options, common.batch_size)
    return Task(model, data, analyzer, options, common.seed, chunk)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task ready to run, with one line that says what it is, and lines on what was taken from where."""

    task: Task
    header: str
    notes: tuple[str, ...]


def prepare(
    analyzer: Analyzer, path: Path, options: Any, common: Common, config: Mapping[str, Any]
) -> Prepared:
    """Load checkpoint and data of one job."""
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    checkpoint, resolved = open_checkpoint(path, common, config)
    data = open_data(common, resolved, path)
    model = open_model(checkpoint, resolved, data, common)
    task = make_task(model, data, analyzer, options, common)
    header = (
        f"{path.name}: {model.info.architecture} ({model.info.coverage}), {data.spec} {data.split}, "
        f"{len(data)} samples, seed {common.seed}, {model.device.type} {common.dtype}"
    )
    return Prepared(task, header, (*checkpoint.findings, *resolved.notes))


def run_in_memory(task: Task, progress: Progress | None = None) -> xarray.Dataset:
    """Run a task without writing anything."""
    from specdiag.runner import MemoryKeeper

    while True:
        keeper = MemoryKeeper()
        try:
            run_samples(task, keeper, progress)
        except OutOfMemory:
            task = _smaller(task)
            continue
        return record(
            assemble(task, keeper),
            task.analyzer,
            settings_of(task),
            model=task.model,
            data=task.data,
            notes=task.data.notes,
        )


def run_to_file(
    task: Task,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Run a task into its group of `path`, by way of a journal beside it.

    A complete group made with the same settings is returned as it is; one made with others is a ResultsError that
    names them, unless `overwrite`.
    """
    name = task.analyzer.name
    with locked(path):
        stored = _stored(task, path, overwrite)
        if stored is not None:
            return Outcome(stored, path, "already there")
        folder = path.parent / f".{path.name.removesuffix('.h5')}.{name}.journal"
        notes = [*notes, *task.data.notes]
        if overwrite and folder.exists():
            _discard_other(task, folder)
        while True:
            task = _adopt_chunk(task, folder)
            settings = settings_of(task)
            journal = Journal(folder, settings_hash(settings), settings)
            continued = bool(journal.finished())
            try:
                run_samples(task, journal, progress)
                break
            except OutOfMemory:
                smaller = _smaller(task)
                if say is not None:
                    say(
                        f"Out of memory with chunks of {task.chunk}: starting again with chunks of {smaller.chunk}."
                    )
                notes.append(
                    f"Out of memory with chunks of {task.chunk}: the whole run was done again with chunks of {smaller.chunk}."
                )
                journal.remove()
                task = smaller
        dataset = record(
            assemble(task, journal), task.analyzer, settings, model=task.model, data=task.data, notes=notes
        )
        write_group(path, name, dataset, overwrite=overwrite)
        journal.remove()
    return Outcome(read_group(path, name), path, "continued" if continued else "computed")


def _stored(task: Task, path: Path, overwrite: bool) -> xarray.Dataset | None:
    """The complete group of the same settings; None where there is none or it is to be replaced."""
    if not path.exists() or task.analyzer.name not in groups(path):
        return None
    dataset = read_group(path, task.analyzer.name)
    facts = provenance(dataset)
    old, new = facts["settings"], settings_of(task)
    backed_off = {**new, "chunk": old.get("chunk")}
    if settings_hash(old) == settings_hash(new) or (
        old.get("chunk", 0) < new["chunk"]
        and settings_hash(old) == settings_hash(backed_off)
        and _memory_note(facts)
    ):
        return dataset
    if overwrite:
        return None
    changed = "; ".join(differences(old, new))
    raise ResultsError(
        f"{path} holds results of {task.analyzer.name} made with other settings ({changed}).",
        "Replace them with --overwrite, or write elsewhere with --out DIR.",
    )


def _memory_note(facts: Mapping[str, Any]) -> bool:
    return any("Out of memory" in note for note in facts.get("notes", ()))


def _discard_other(task: Task, folder: Path) -> None:
    """Drop a journal of other settings; one of the same settings is still good."""
    settings = settings_of(task)
    try:
        Journal(folder, settings_hash(settings), settings)
    except ResultsError:
        discard(folder)


def _adopt_chunk(task: Task, folder: Path) -> Task:
    """The task on the smaller grid of a journal that an out-of-memory back-off left behind."""
    chunk = task.chunk
    while folder.exists() and chunk >= 1:
        smaller = Task(task.model, task.data, task.analyzer, task.options, task.seed, chunk)
        settings = settings_of(smaller)
        try:
            Journal(folder, settings_hash(settings), settings)
        except ResultsError:
            if chunk == 1:
                break
            chunk = chunk // 2 if chunk > 8 else 1
            continue
        return smaller
    return task


def _smaller(task: Task) -> Task:
    if task.chunk == 1:
        raise OutOfMemory(
            "Not even one sample fits into the memory.",
            "Use a smaller network or input, --dtype float32, or another --device.",
        )
    chunk = max(8, task.chunk // 2 // 8 * 8) if task.chunk > 8 else 1
    return Task(task.model, task.data, task.analyzer, task.options, task.seed, chunk)
