"""Hands the jobs of a plan to an executor, keeps the locks of their files, and collects what became of them."""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from specdiag.batch.calls import Answer, Begun, Call, Done, Executor, Failure, Left, News, failure_of
from specdiag.batch.plan import Job, Plan
from specdiag.errors import SpecdiagError
from specdiag.locks import locked

Status = Literal["computed", "continued", "already there", "failed", "skipped"]
# calls in which a split job is handed out, per worker: few enough to be cheap, enough to even out
_SHARES = 4
# how long another run of specdiag may hold a results file before its job is given up
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one job; seconds: of computing, all calls together."""

    job: Job
    status: Status
    seconds: float = 0.0
    failure: Failure | None = None
    reason: str = ""
    calls: int = 1


@dataclass
class _Running:
    """A job under way; waiting: calls on it that have no answer yet."""

    job: Job
    begun: Begun | None = None
    waiting: int = 0
    seconds: float = 0.0
    calls: int = 0
    failure: Failure | None = None


@dataclass
class Schedule:
    """Runs a plan. samples(n): progress by n samples; said(text): a line for the user; ended(result): a job is done."""

    executor: Executor
    samples: Callable[[int], None] = lambda count: None
    said: Callable[[str], None] = lambda text: None
    ended: Callable[[Result], None] = lambda result: None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def run(self, plan: Plan) -> list[Result]:
        """All jobs; the results are in the order of the plan."""
        self._queue: deque[Job] = deque(plan.jobs)
        self._active: dict[int, _Running] = {}
        self._results: dict[int, Result] = {}
        self._locks: dict[Path, tuple[ExitStack, int]] = {}
        try:
            while self._queue or self._active:
                while self._queue and self._under_way() < self._limit():
                    self._start(self._queue.popleft())
                if self._active:
                    self.heard(self.executor.next())
        finally:
            for stack, _ in self._locks.values():
                stack.close()
            self.executor.close()
        return [self._results[job.number] for job in plan.jobs]

    def _under_way(self) -> int:
        return sum(running.waiting for running in self._active.values())

    def _limit(self) -> int:
        # one call in hand for each worker that is about to be free
        return self.executor.width if self.executor.splits == "never" else 2 * self.executor.width

    def _start(self, job: Job) -> None:
        try:
            self._lock(job.target)
        except SpecdiagError as error:
            self._end(_Running(job), "failed", failure=failure_of(error))
            return
        running = self._active[job.number] = _Running(job)
        splits = self.executor.splits == "always" or (
            self.executor.splits == "tail" and len(self._queue) < 2 * self.executor.width
        )
        self._submit(running, Call(self.run_id, job, "begin" if splits else "whole"))

    def _submit(self, running: _Running, call: Call) -> None:
        running.waiting += 1
        running.calls += 1
        self.executor.submit(call)

    def heard(self, news: News) -> None:
        """Take note of something that happened to a call."""
        if news.kind == "samples":
            self.samples(news.body)
        elif news.kind == "say":
            self.said(news.body)
        else:
            self._answered(self._active[news.call.job.number], news.call, news.body)

    def _answered(self, running: _Running, call: Call, answer: Answer) -> None:
        running.waiting -= 1
        if isinstance(answer, Failure):
            running.failure = running.failure or answer
        else:
            running.seconds += getattr(answer, "seconds", 0.0)
        if isinstance(answer, Left):
            self._end(running, "skipped", reason=answer.reason)
        elif isinstance(answer, Done):
            self._end(running, answer.status)
        elif isinstance(answer, Begun):
            self._begun(running, call, answer)
        elif running.waiting == 0:
            if running.failure is None:
                self._finish(running, call)
            elif running.failure.kind == "OutOfMemory" and running.begun is not None:
                # the back-off changes the chunk grid, so that the whole job starts again in one piece
                self.said(f"{running.job}: {running.failure.what} Running it in one piece.")
                running.failure = None
                sheet, running.begun = running.begun.sheet, None
                self._submit(running, Call(self.run_id, running.job, "whole", sheet))
            else:
                self._end(running, "failed", failure=running.failure)

    def _begun(self, running: _Running, call: Call, begun: Begun) -> None:
        running.begun = begun
        self.samples(begun.finished)
        if not begun.missing:
            self._finish(running, call)
            return
        for chunks in shares(list(begun.missing), _SHARES * self.executor.width):
            self._submit(running, replace(call, step="compute", sheet=begun.sheet, chunks=tuple(chunks)))

    def _finish(self, running: _Running, call: Call) -> None:
        if running.begun is None:
            raise TypeError("a job that was not begun cannot be finished")
        continued = running.begun.finished > 0
        sheet = running.begun.sheet
        self._submit(running, replace(call, step="finish", sheet=sheet, chunks=(), continued=continued))

    def _end(
        self, running: _Running, status: Status, *, failure: Failure | None = None, reason: str = ""
    ) -> None:
        result = Result(running.job, status, running.seconds, failure, reason, running.calls)
        self._results[running.job.number] = result
        if self._active.pop(running.job.number, None) is not None:
            self._unlock(running.job.target)
        self.ended(result)

    def _lock(self, target: Path) -> None:
        if target not in self._locks:
            stack = ExitStack()
            stack.enter_context(locked(target, PATIENCE))
            self._locks[target] = (stack, 0)
        stack, count = self._locks[target]
        self._locks[target] = (stack, count + 1)

    def _unlock(self, target: Path) -> None:
        stack, count = self._locks.pop(target)
        if count > 1:
            self._locks[target] = (stack, count - 1)
        else:
            stack.close()


def shares(chunks: Sequence[int], parts: int) -> list[list[int]]:
    """Chunks in at most `parts` runs of nearly equal length, in order."""
    parts = min(parts, len(chunks))
    ends = [round(len(chunks) * part / parts) for part in range(parts + 1)] if parts else [0]
    return [list(chunks[start:stop]) for start, stop in itertools.pairwise(ends)]
