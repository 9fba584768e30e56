"""A process that computes: pickled calls on stdin, pickled news on stdout. Ends when its parent does."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from typing import Any


def main() -> None:
    """Serve until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # whatever a library prints must not mix with the answers
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    from specdiag import heap
    from specdiag.batch.work import perform

    heap.keep()

    def send(kind: str, body: Any) -> None:
        pickle.dump((kind, body), out)
        out.flush()

    while True:
        send("answer", perform(calls.get(), send))


def _listen(calls: queue.SimpleQueue[Any]) -> None:
    """Pass calls on; when the parent is gone, however it went, end at once."""
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(1)
