"""Compute on a Ray cluster: tasks of a few whole chunks, retried where a worker or a node is lost.

Journals and results files are written where the command runs. A node that sees the journal in its own file system
writes its chunks there and returns their numbers alone; from any other the arrays of its few chunks travel back.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from specdiag.batch.calls import (
    Answer,
    Begun,
    Call,
    Carried,
    Done,
    Failure,
    News,
    Parcel,
    Weighed,
    failure_of,
)
from specdiag.batch.ray_address import settle
from specdiag.errors import MissingExtra, ResultsError, UsageError

# how often a task is started again after its worker or node was lost
RETRIES = 5
_PROBES = 20
# bytes of a cluster that is started here; Ray refuses less than 75 MB
_STORE = 200_000_000


class Cluster:
    """An executor on an existing cluster (address), or on one that is started here and bound to 127.0.0.1."""

    splits: Literal["always"] = "always"

    def __init__(self, address: str | None = None, jobs: int | None = None) -> None:
        """Connect; address None takes the environment's RAY_ADDRESS, else starts a cluster of `jobs` CPUs here."""
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        address = address or os.environ.get("RAY_ADDRESS")
        # Ray reads its environment when it is imported
        settle(address)
        import ray

        self._ray: Any = ray
        self._owner = not self._ray.is_initialized()
        if self._owner:
            _connect(ray, address, jobs)
        resources = self._ray.cluster_resources()
        cpus, self._gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        self.width = max(1, min(cpus, jobs or cpus))
        self._remote: Any = self._ray.remote(max_retries=RETRIES)(_there)
        self._running: dict[Any, Call] = {}
        self._news: deque[News] = deque()

    def describe(self) -> str:
        """Nodes, CPUs, and the seconds that an empty task takes there and back (the median of some)."""
        alive = sum(node["Alive"] for node in self._ray.nodes())
        empty = self._ray.remote(_nothing)
        self._ray.get(empty.remote())
        seconds = []
        for _ in range(_PROBES):
            start = time.perf_counter()
            self._ray.get(empty.remote())
            seconds.append(time.perf_counter() - start)
        overhead = 1000 * statistics.median(seconds)
        nodes = "1 node" if alive == 1 else f"{alive} nodes"
        return f"ray: {nodes}, {self.width} tasks at a time, {overhead:.1f} ms overhead per task"

    def submit(self, call: Call) -> None:
        """Take a call; results files are written here, so `finish` runs here at once."""
        if call.step == "finish":
            self._news.append(News(call, "answer", _here(call)))
        elif call.step == "whole" and call.sheet is not None:
            todo = "Use a smaller batch_size."
            self._news.append(News(call, "answer", Failure("The chunk did not fit on its node.", todo)))
        else:
            self._send(replace(call, bring=True))

    def next(self) -> News:
        """Wait for the next answer."""
        while not self._news:
            done, _ = self._ray.wait(list(self._running), num_returns=1)
            call = self._running.pop(done[0])
            answer = self._received(call, self._answer(done[0]))
            if answer is None:
                continue
            if isinstance(answer, Parcel):
                self._news.append(News(call, "samples", _count(call, answer)))
            self._news.append(News(call, "answer", answer))
        return self._news.popleft()

    def close(self) -> None:
        """Drop what is under way, and leave the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._owner:
            self._ray.shutdown()

    def _send(self, call: Call) -> None:
        device = call.job.shared.device
        gpus = 1 if device.startswith("cuda") or (device == "auto" and self._gpus) else 0
        asked = self._remote.options(
            num_cpus=call.job.shared.threads, num_gpus=gpus, name=f"{call.job} {call.step}"
        )
        self._running[asked.remote(call, os.getcwd())] = call

    def _answer(self, reference: Any) -> Answer:
        try:
            answer: Answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [""])[-1][:300]
            todo = "Is specdiag of the same version installed on every node?"
            return Failure(
                f"A task was lost on the cluster: {type(error).__name__}: {first}", todo, 2, "RayError"
            )
        return answer

    def _received(self, call: Call, answer: Answer) -> Answer | None:
        """What is done here with what comes back; None where another task follows from it."""
        from specdiag.batch.work import begin_with, keep, weights_there
        from specdiag.jobs import admit

        try:
            if isinstance(answer, Begun):
                return begin_with(admit(answer.sheet), time.perf_counter() - answer.seconds)
            if isinstance(answer, Weighed):
                if weights_there(call.job, answer.settings):
                    return Done("already there", answer.seconds)
                self._send(replace(call, step="whole", bring=True))
                return None
            if isinstance(answer, Carried):
                keep(call.job, answer.dataset)
                return Done("computed", answer.seconds)
            if isinstance(answer, Parcel) and answer.arrays is not None:
                if call.sheet is None:
                    raise TypeError("chunks came back without their sheet")
                journal = call.sheet.journal()
                for number, arrays in answer.arrays.items():
                    journal.write(number, arrays)
                return replace(answer, arrays=None)
        except Exception as error:
            return failure_of(error)
        return answer


def _there(call: Call, folder: str) -> Answer:
    """Runs on a node."""
    from specdiag.batch.work import perform

    # relative paths of checkpoints and data mean the same as for the command
    if os.path.isdir(folder):
        os.chdir(folder)
    elif not call.job.checkpoint.is_absolute():
        return failure_of(
            ResultsError(
                f"This node has no folder {folder}.",
                "Name checkpoints and data by paths that every node has.",
            )
        )
    if call.sheet is not None and _sees_journal(call):
        call = replace(call, bring=False)
    return perform(call, lambda kind, body: None)


def _here(call: Call) -> Answer:
    from specdiag.batch.work import perform

    return perform(call, lambda kind, body: None)


def _sees_journal(call: Call) -> bool:
    """Whether the journal that the command opened is in this node's file system."""
    from specdiag.journal import folder_of
    from specdiag.store import settings_hash

    if call.sheet is None:
        return False
    place = folder_of(Path(call.sheet.path), call.sheet.analyzer_name) / "settings.json"
    try:
        known = json.loads(place.read_bytes())["settings_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(known == settings_hash(call.sheet.settings))


def _nothing() -> None:
    return None


def _count(call: Call, parcel: Parcel) -> int:
    if call.sheet is None:
        return 0
    total, chunk = len(call.sheet.data), call.sheet.chunk
    return sum(min(chunk, total - number * chunk) for number in parcel.chunks)


def _connect(ray: Any, address: str | None, jobs: int | None) -> None:
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            # small results alone pass through the object store; the whole of /dev/shm is not asked for
            ray.init(
                address="local",
                num_cpus=jobs or os.cpu_count(),
                object_store_memory=_STORE,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"The Ray cluster {address or 'on this machine'} cannot be reached: {reason}",
            "Start one with: ray start --head, and pass its --address.",
        ) from error
