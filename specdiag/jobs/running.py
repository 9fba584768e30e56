"""Run a task into its group of the results file: lock, journal, back-off, record.

Continues an interrupted run from its journal, recognises a finished one, and never mixes settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray

from specdiag import plugins
from specdiag.errors import ResultsError
from specdiag.journal import Journal, differences, discard, folder_of
from specdiag.loading.datasets import Data
from specdiag.locks import locked
from specdiag.provenance import describe, record, record_weights, settings_of, settings_of_weights
from specdiag.runner import Keeper, MemoryKeeper, OutOfMemory, Progress, Task, assemble, run_samples
from specdiag.schema import Analyzer
from specdiag.store import groups, provenance, read_group, settings_hash, write_group
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


@dataclass(frozen=True, slots=True)
class Sheet:
    """A task without its model and its data values: all that finishing it needs, small enough to travel.

    data: spec, split, index and hash, with x of shape (N, 0); settings: with the chunk size that the journal is on.
    """

    path: Path
    analyzer_name: str
    options: Any
    data: Data
    settings: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    train: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    overwrite: bool = False

    @property
    def analyzer(self) -> Analyzer:
        """The declaration of the analyzer."""
        analyzer: Analyzer = plugins.load("analyzer", self.analyzer_name)
        return analyzer

    @property
    def chunk(self) -> int:
        """Samples per chunk."""
        return int(self.settings["chunk"])

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-len(self.data) // self.chunk)

    def journal(self) -> Journal:
        """The journal of its chunks, opened or made."""
        return Journal(folder_of(self.path, self.analyzer_name), settings_hash(self.settings), self.settings)


def sheet_of(task: Task, path: Path, *, overwrite: bool = False, notes: Sequence[str] = ()) -> Sheet:
    """The sheet of a task whose results go to `path`."""
    empty = np.zeros((len(task.data), 0), np.float32)
    return Sheet(
        path,
        task.analyzer.name,
        task.options,
        dataclasses.replace(task.data, x=empty, y=None),
        settings_of(task),
        describe(task.model),
        dict(task.model.info.train),
        (*notes, *task.data.notes),
        overwrite,
    )


def admit(sheet: Sheet) -> Outcome | Sheet:
    """What is there already: the complete group of the same settings, or the sheet on the grid of its journal.

    The caller holds the lock of the results file. Raises ResultsError where other settings are in the way.
    """
    stored = stored_group(sheet.settings, sheet.path, sheet.analyzer_name, sheet.overwrite)
    folder = folder_of(sheet.path, sheet.analyzer_name)
    if stored is not None:
        # killed between writing the group and dropping the journal
        if folder.exists() and _is_of(sheet.settings, folder):
            discard(folder)
        return Outcome(stored, sheet.path, "already there")
    if sheet.overwrite and folder.exists() and not _is_of(sheet.settings, folder):
        discard(folder)
    return _on_chunk(sheet, _adopted_chunk(sheet.settings, folder))


def finish(sheet: Sheet, keeper: Keeper, *, continued: bool = False) -> Outcome:
    """Write the group from the finished chunks and drop the journal; the caller holds the lock."""
    dataset = record(
        assemble(sheet, keeper),
        sheet.analyzer,
        sheet.settings,
        model=None,
        data=sheet.data,
        checkpoint=sheet.checkpoint,
        train=sheet.train,
        notes=sheet.notes,
    )
    write_group(sheet.path, sheet.analyzer_name, dataset, overwrite=sheet.overwrite)
    discard(folder_of(sheet.path, sheet.analyzer_name))
    stored = read_group(sheet.path, sheet.analyzer_name)
    return Outcome(stored, sheet.path, "continued" if continued else "computed")


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
    with locked(path):
        found = admit(sheet_of(task, path, overwrite=overwrite, notes=notes))
        if isinstance(found, Outcome):
            return found
        while True:
            task, journal = dataclasses.replace(task, chunk=found.chunk), found.journal()
            continued = bool(journal.finished())
            try:
                run_samples(task, journal, progress)
                return finish(found, journal, continued=continued)
            except OutOfMemory:
                smaller = _smaller(task).chunk
                trouble = f"Out of memory with chunks of {found.chunk}:"
                if say is not None:
                    say(f"{trouble} starting again with chunks of {smaller}.")
                note = f"{trouble} the whole run was done again with chunks of {smaller}."
                journal.remove()
                found = _on_chunk(dataclasses.replace(found, notes=(*found.notes, note)), smaller)


def _weights_to_file(task: WeightsTask, path: Path, overwrite: bool, notes: Sequence[str]) -> Outcome:
    name, settings = task.analyzer.name, settings_of_weights(task)
    with locked(path):
        stored = stored_group(settings, path, name, overwrite)
        if stored is not None:
            return Outcome(stored, path, "already there")
        write_group(path, name, record_weights(run_weights(task), task, notes), overwrite=overwrite)
    return Outcome(read_group(path, name), path, "computed")


def stored_group(
    settings: Mapping[str, Any], path: Path, name: str, overwrite: bool
) -> xarray.Dataset | None:
    """The complete group of the same settings; None where there is none or it is to be replaced."""
    if not path.exists() or name not in groups(path):
        return None
    dataset = read_group(path, name)
    facts = provenance(dataset)
    old = facts["settings"]
    if settings_hash(old) == settings_hash(settings):
        return dataset
    chunk = old.get("chunk", 0)
    smaller = chunk < settings.get("chunk", 0) and settings_hash(old) == settings_hash(
        {**settings, "chunk": chunk}
    )
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


def _on_chunk(sheet: Sheet, chunk: int) -> Sheet:
    return dataclasses.replace(sheet, settings={**sheet.settings, "chunk": chunk})


def _is_of(settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether a journal holds chunks of these settings."""
    try:
        Journal(folder, settings_hash(settings), settings)
    except ResultsError:
        return False
    return True


def _adopted_chunk(settings: Mapping[str, Any], folder: Path) -> int:
    """The chunk size of the journal: a smaller one where an out-of-memory back-off left it behind."""
    chunk = int(settings["chunk"])
    while folder.exists() and chunk >= 1:
        if _is_of({**settings, "chunk": chunk}, folder):
            return chunk
        if chunk == 1:
            break
        chunk = chunk // 2 if chunk > 8 else 1
    return int(settings["chunk"])


def _smaller(task: Task) -> Task:
    if task.chunk == 1:
        raise OutOfMemory(
            "Not even one sample fits into the memory.",
            "Use a smaller network or input, --dtype float32, or another --device.",
        )
    chunk = max(8, task.chunk // 2 // 8 * 8) if task.chunk > 8 else 1
    return dataclasses.replace(task, chunk=chunk)
