"""A progress bar on stderr with samples per second and time left, for anything that takes over two seconds."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PATIENCE = 2.0


class ProgressBar:
    """A context that yields a callback (done, total); silent where stderr is no terminal, or under CI or NO_COLOR."""

    def __init__(self, label: str, unit: str = "samples") -> None:
        self._label, self._unit = label, unit
        quiet = not sys.stderr.isatty() or bool(os.environ.get("CI") or os.environ.get("NO_COLOR"))
        self._bar = (
            None
            if quiet
            else Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
        )
        self._start = 0.0
        self._first = 0
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        return self

    @property
    def visible(self) -> bool:
        """Whether a bar may be drawn at all."""
        return self._bar is not None

    def __call__(self, done: int, total: int) -> None:
        """Report progress; the bar appears once two seconds have passed."""
        now = time.monotonic()
        if not self._start:
            self._start, self._first = now, done
        if self._bar is None or now - self._start < PATIENCE:
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=total, rate="")
        rate = (done - self._first) / max(1e-9, now - self._start)
        self._bar.update(self._task, completed=done, rate=f"{rate:.1f} {self._unit}/s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.stop()
