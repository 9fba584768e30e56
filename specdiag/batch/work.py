"""One call on one job, in whichever process it lands."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from specdiag import plugins
from specdiag.batch.calls import (
    Answer,
    Begun,
    Call,
    Carried,
    Done,
    Left,
    Listener,
    Parcel,
    Weighed,
    failure_of,
)
from specdiag.batch.plan import Job
from specdiag.errors import ResultsError
from specdiag.jobs import (
    Common,
    Outcome,
    Prepared,
    admit,
    finish,
    prepare,
    run_to_file,
    sheet_of,
    stored_group,
)
from specdiag.jobs.memory import parse_bytes
from specdiag.journal import differences
from specdiag.loading.checkpoints import Trust
from specdiag.loading.datasets import Data
from specdiag.loading.resolve import Wanted
from specdiag.locks import lent_lock
from specdiag.options import build_options
from specdiag.provenance import record_weights, settings_of, settings_of_weights
from specdiag.runner import MemoryKeeper, Task, run_samples
from specdiag.store import settings_hash, write_group
from specdiag.weights import WeightsTask, run_weights

# models that stay open for the next call on them
_KEPT = 2
_open: dict[tuple[str, int], Prepared] = {}


def perform(call: Call, listen: Listener) -> Answer:
    """Do it; every error becomes a Failure. listen("samples", n) and listen("say", text) report on the way."""
    start = time.perf_counter()
    try:
        with limited(call.job), lent_lock(call.job.target):
            return _STEPS[call.step](call, listen, start)
    except Exception as error:
        forget()
        return failure_of(error, traceback.format_exc() if os.environ.get("SPECDIAG_DEBUG") else "")


def limited(job: Job) -> AbstractContextManager[Any]:
    """The job's number of threads also for the linear algebra of numpy and scipy; torch keeps to it by itself."""
    limits: AbstractContextManager[Any] = threadpool_limits(job.shared.threads)
    return limits


def forget() -> None:
    """Close all models."""
    _open.clear()


def common_of(job: Job) -> Common:
    """The job's shared keys as the options of a command."""
    shared = job.shared
    return Common(
        wanted=Wanted(data=shared.data),
        weights=shared.weights,
        split=shared.split,
        samples=shared.samples,
        seed=shared.seed,
        layout=shared.layout,
        download=shared.download,
        device=shared.device,
        dtype=shared.dtype,
        space=shared.space,
        threads=shared.threads,
        compile=shared.compile,
        max_memory=None if shared.max_memory is None else parse_bytes(shared.max_memory),
        batch_size=None if shared.batch_size == "auto" else shared.batch_size,
        input_layer=shared.input_layer,
        trust=Trust(shared.trust_pickle, shared.trust_code),
    )


def opened(call: Call) -> Prepared:
    """The job's checkpoint, data and model, kept open for further calls of the same run."""
    key = (call.run, call.job.number)
    if key not in _open:
        while len(_open) >= _KEPT:
            del _open[next(iter(_open))]
        job = call.job
        analyzer = plugins.load("analyzer", job.analyzer)
        options = build_options(analyzer, job.values)
        _open[key] = prepare(analyzer, job.checkpoint, options, common_of(job), job.config, job.others)
    return _open[key]


def some(data: Data, places: Sequence[int]) -> Data:
    """The samples at these places, in this order."""
    rows = np.asarray(places, dtype=np.intp)
    return replace(
        data,
        x=np.ascontiguousarray(data.x[rows]),
        y=None if data.y is None else data.y[rows],
        index=data.index[rows],
        splits=None if data.splits is None else tuple(data.splits[row] for row in rows),
    )


def _inapplicable(prepared: Prepared) -> str:
    task = prepared.task
    if "labels" in task.analyzer.needs and isinstance(task, Task) and task.data.y is None:
        return f"{task.analyzer.name} needs labels, and {task.data.spec} has none"
    return ""


def _whole(call: Call, listen: Listener, start: float) -> Answer:
    prepared = opened(call)
    if reason := _inapplicable(prepared):
        return Left(reason)
    if call.bring and isinstance(prepared.task, WeightsTask):
        dataset = record_weights(run_weights(prepared.task), prepared.task, prepared.notes)
        return Carried(dataset, time.perf_counter() - start)
    seen = [0]

    def progress(done: int, total: int) -> None:
        listen("samples", done - seen[0])
        seen[0] = done

    outcome = run_to_file(
        prepared.task,
        call.job.target,
        overwrite=call.job.overwrite,
        progress=progress,
        say=lambda text: listen("say", f"{call.job}: {text}"),
        notes=prepared.notes,
    )
    return Done(outcome.status, time.perf_counter() - start)


def _begin(call: Call, listen: Listener, start: float) -> Answer:
    prepared = opened(call)
    if reason := _inapplicable(prepared):
        return Left(reason)
    if isinstance(prepared.task, WeightsTask):
        if call.bring:
            return Weighed(settings_of_weights(prepared.task), time.perf_counter() - start)
        return _whole(call, listen, start)
    sheet = sheet_of(prepared.task, call.job.target, overwrite=call.job.overwrite, notes=prepared.notes)
    if call.bring:
        return Begun(sheet, {}, 0, time.perf_counter() - start)
    return begin_with(admit(sheet), start)


def begin_with(found: Outcome | Any, start: float) -> Answer:
    """The answer to `begin` for what `admit` found."""
    if isinstance(found, Outcome):
        return Done(found.status, time.perf_counter() - start)
    done = set(found.journal().finished())
    sizes = {
        number: min(found.chunk, len(found.data) - number * found.chunk) for number in range(found.count)
    }
    missing = {number: size for number, size in sizes.items() if number not in done}
    finished = sum(size for number, size in sizes.items() if number in done)
    return Begun(found, missing, finished, time.perf_counter() - start)


def _compute(call: Call, listen: Listener, start: float) -> Answer:
    task, sheet = opened(call).task, call.sheet
    if sheet is None or not isinstance(task, Task):
        raise TypeError("compute needs a sheet and samples")
    task = replace(task, chunk=sheet.chunk)
    own = settings_of(task)
    if settings_hash(own) != settings_hash(sheet.settings):
        changed = "; ".join(differences(sheet.settings, own))
        raise ResultsError(
            f"This machine would compute other bytes than the one that began: {changed}.",
            "Use machines of one kind with the same versions.",
        )
    keeper = MemoryKeeper() if call.bring else sheet.journal()
    seen = [0]

    def progress(done: int, total: int) -> None:
        listen("samples", done - seen[0])
        seen[0] = done

    run_samples(task, keeper, progress, only=call.chunks)
    arrays = {number: keeper.read(number) for number in call.chunks} if call.bring else None
    return Parcel(call.chunks, time.perf_counter() - start, arrays)


def _finish(call: Call, listen: Listener, start: float) -> Answer:
    if call.sheet is None:
        raise TypeError("finish needs a sheet")
    outcome = finish(call.sheet, call.sheet.journal(), continued=call.continued)
    return Done(outcome.status, time.perf_counter() - start)


def weights_there(job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether the job's group is stored with these settings; other settings are an error, as everywhere."""
    return stored_group(settings, job.target, job.analyzer, job.overwrite) is not None


def keep(job: Job, dataset: Any) -> None:
    """Write a result that came from elsewhere."""
    write_group(job.target, job.analyzer, dataset, overwrite=job.overwrite)


_STEPS = {"whole": _whole, "begin": _begin, "compute": _compute, "finish": _finish}
