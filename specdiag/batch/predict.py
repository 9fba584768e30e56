"""What a batch will cost: each job opened and measured on a few samples, nothing written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from specdiag.batch.calls import Call, Failure, failure_of
from specdiag.batch.plan import Job, Plan
from specdiag.batch.work import forget, limited, opened, some
from specdiag.jobs import Prepared
from specdiag.options import json_options
from specdiag.runner import Task, compute_chunk
from specdiag.store import settings_hash

MEASURED = 8
WARM = 3.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a job; seconds and bytes are None where they cannot be told beforehand."""

    job: Job
    header: str = ""
    samples: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    failure: Failure | None = None


def forecast(plan: Plan) -> Iterator[Forecast]:
    """One forecast per job, in order.

    Jobs of one architecture, analyzer and shape share a measurement on eight samples; its seconds for all
    samples are an upper estimate, because larger chunks are faster.
    """
    known: dict[str, tuple[float, int]] = {}
    for job in plan.jobs:
        try:
            with limited(job):
                yield _of_job(job, known)
        except Exception as error:
            yield Forecast(job, failure=failure_of(error))
        finally:
            forget()


def _of_job(job: Job, known: dict[str, tuple[float, int]]) -> Forecast:
    prepared = opened(Call("forecast", job, "begin"))
    task = prepared.task
    if not isinstance(task, Task):
        return Forecast(job, prepared.header)
    key = _key(prepared, task)
    if key not in known:
        known[key] = _measure(task)
    seconds, size = known[key]
    count = len(task.data)
    return Forecast(job, prepared.header, count, seconds * count, size * count)


def _measure(task: Task) -> tuple[float, int]:
    """Seconds and bytes per sample."""
    few = replace(task, data=some(task.data, range(min(MEASURED, len(task.data)))), chunk=MEASURED)
    # before the clock starts: it is a pass over all samples, not over these few
    facts = task.facts
    seconds = 0.0
    # the first call of a process also loads libraries; where it took long it is good enough
    for _ in range(2):
        start = time.perf_counter()
        arrays = compute_chunk(few, 0, facts)
        seconds = time.perf_counter() - start
        if seconds > WARM:
            break
    count = len(few.data)
    return seconds / count, sum(int(array.nbytes) for array in arrays.values()) // count


def _key(prepared: Prepared, task: Task) -> str:
    facts: dict[str, Any] = {
        "analyzer": task.analyzer.name,
        "options": json_options(task.options),
        "architecture": task.model.info.architecture,
        "arguments": dict(task.model.info.arch_args),
        "shape": list(task.model.input_shape),
        "dtype": str(task.model.dtype),
        "others": len(task.others),
    }
    return settings_hash(json.loads(json.dumps(facts, default=str)))
