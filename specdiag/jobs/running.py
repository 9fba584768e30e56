"""Run a task into its group of the results file: lock, journal, back-off, record.

Continues an interrupted run from its journal, recognises a finished one, and never mixes settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xarray

from specdiag.errors import ResultsError
from specdiag.journal import Journal, differences, discard
from specdiag.provenance import record, record_weights, settings_of, settings_of_weights
from specdiag.runner import MemoryKeeper, OutOfMemory, Progress, Task, assemble, run_samples
from specdiag.store import groups, locked, provenance, read_group, settings_hash, write_group
from specdiag.weights import WeightsTask, run_weights

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job ended with: the stored dataset, its file, and whether anything had to be computed."""

    dataset: xarray.Dataset
    path: Path | None
    status: Literal["computed", "continued", "already there"]


def run_in_memory(task: Task, progress: Progress | None = None) -> xarray.Dataset:
    """Run a task without writing anything."""
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
    task: Task | WeightsTask,
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
    if isinstance(task, WeightsTask):
        return _weights_to_file(task, path, overwrite, notes)
    name = task.analyzer.name
    with locked(path):
        stored = _stored(settings_of(task), path, name, overwrite)
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


def _weights_to_file(task: WeightsTask, path: Path, overwrite: bool, notes: Sequence[str]) -> Outcome:
    name, settings = task.analyzer.name, settings_of_weights(task)
    with locked(path):
        stored = _stored(settings, path, name, overwrite)
        if stored is not None:
            return Outcome(stored, path, "already there")
        write_group(path, name, record_weights(run_weights(task), task, notes), overwrite=overwrite)
    return Outcome(read_group(path, name), path, "computed")


def _stored(settings: Mapping[str, Any], path: Path, name: str, overwrite: bool) -> xarray.Dataset | None:
    """The complete group of the same settings; None where there is none or it is to be replaced."""
    if not path.exists() or name not in groups(path):
        return None
    dataset = read_group(path, name)
    facts = provenance(dataset)
    old = facts["settings"]
    if settings_hash(old) == settings_hash(settings):
        return dataset
    chunk = old.get("chunk", 0)
    smaller = chunk < settings.get("chunk", 0) and settings_hash(old) == settings_hash({**settings, "chunk": chunk})
    # an out-of-memory back-off made it: the same command would end there again
    if smaller and _memory_note(facts):
        return dataset
    if overwrite:
        return None
    changed = "; ".join(differences(old, settings))
    raise ResultsError(
        f"{path} holds results of {name} made with other settings ({changed}).",
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
        smaller = dataclasses.replace(task, chunk=chunk)
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
    return dataclasses.replace(task, chunk=chunk)
