"""Compute on this machine: in this process, or in several that this one starts."""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Literal

from specdiag.batch.calls import Call, Failure, News

# a worker that dies is given its call once more
_TRIES = 2


class Serial:
    """One call after the other, in this process."""

    width = 1
    splits: Literal["never"] = "never"

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._news: deque[News] = deque()
        self._current: Call | None = None

    def submit(self, call: Call) -> None:
        """Take a call."""
        self._calls.append(call)

    def next(self) -> News:
        """The next answer; what is heard on the way goes to `listener`."""
        from specdiag.batch.work import perform

        if not self._news:
            call = self._calls.popleft()

            def listen(kind: str, body: Any) -> None:
                self.listener(News(call, "samples" if kind == "samples" else "say", body))

            self._news.append(News(call, "answer", perform(call, listen)))
        return self._news.popleft()

    def listener(self, news: News) -> None:
        """Replaced by whoever wants progress while a call runs."""

    def close(self) -> None:
        """Close all models."""
        from specdiag.batch.work import forget

        forget()


class Pool:
    """Several processes, one call each at a time. Each ends with this process, also when that is killed."""

    splits: Literal["tail"] = "tail"

    def __init__(self, width: int) -> None:
        self.width = width
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[Call, int]] = deque()
        self._inbox: queue.SimpleQueue[tuple[_Worker, str, Any]] = queue.SimpleQueue()

    def submit(self, call: Call) -> None:
        """Take a call."""
        self._waiting.append((call, 1))
        self._hand_out()

    def next(self) -> News:
        """Wait for the next thing that happens to any call."""
        while True:
            worker, kind, body = self._inbox.get()
            if worker not in self._workers:
                continue
            task = worker.task
            if kind == "gone":
                self._workers.remove(worker)
                news = None if task is None else self._died(*task, body)
            else:
                if kind == "answer":
                    worker.task = None
                news = None if task is None else News(task[0], _KINDS[kind], body)
            self._hand_out()
            if news is not None:
                return news

    def workers(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.task is None and self._waiting:
                worker.take(*self._waiting.popleft())
        while self._waiting and len(self._workers) < self.width:
            worker = _Worker(self._inbox)
            self._workers.append(worker)
            worker.take(*self._waiting.popleft())

    def _died(self, call: Call, tries: int, status: int) -> News:
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        if tries < _TRIES:
            self._waiting.appendleft((call, tries + 1))
            return News(call, "say", f"{call.job}: a worker process ended ({how}); trying once more.")
        todo = "If memory was short, use fewer --jobs or a smaller batch_size."
        return News(
            call, "answer", Failure(f"The worker process ended twice ({how}).", todo, 2, "WorkerDied")
        )


_KINDS: dict[str, Literal["answer", "samples", "say"]] = {
    "answer": "answer",
    "samples": "samples",
    "say": "say",
}


class _Worker:
    def __init__(self, inbox: queue.SimpleQueue[tuple[_Worker, str, Any]]) -> None:
        self.task: tuple[Call, int] | None = None
        start = f"import sys; sys.path[:] = {json.dumps(sys.path)}; from specdiag.batch.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
        threading.Thread(target=self._read, args=(inbox,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self, call: Call, tries: int) -> None:
        self.task = (call, tries)
        # a worker that died meanwhile is noticed by its reader
        with suppress(OSError):
            stdin: Any = self._process.stdin
            pickle.dump(call, stdin)
            stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _read(self, inbox: queue.SimpleQueue[tuple[_Worker, str, Any]]) -> None:
        stdout: Any = self._process.stdout
        with suppress(EOFError, OSError, pickle.UnpicklingError, ValueError):
            while True:
                kind, body = pickle.load(stdout)
                inbox.put((self, kind, body))
        inbox.put((self, "gone", self._process.wait()))


def _environment() -> dict[str, str]:
    # OpenMP pools of several processes would fight for the cores; each task sets its own number of threads
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
