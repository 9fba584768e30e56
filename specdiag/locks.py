"""Locks of results files, and failures of the file system explained.

Of two processes on one results file the second waits or stops with a clear message. A lock is a file held by flock,
so that it ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specdiag.errors import ResultsError

_WRITING = 60.0
_held: dict[tuple[int, int, str], int] = {}


@contextmanager
def locked(path: Path, wait: float = 0) -> Iterator[None]:
    """Hold the lock `DIR/.NAME.lock` of the results file `DIR/NAME.h5`; the folder is made if missing.

    A thread that holds a lock may take it again. Raises ResultsError when another process or thread
    still holds it after `wait` seconds, or when the folder cannot be written to.
    """
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.parent.resolve() / f".{name_of(path)}.lock"
    key = (os.getpid(), threading.get_ident(), str(lock))
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    with _flocked(lock, path, wait):
        _held[key] = 1
        try:
            yield
        finally:
            del _held[key]


@contextmanager
def lent_lock(path: Path) -> Iterator[None]:
    """Inside, this thread may write `path` because the process that started it holds the lock and waits for it."""
    path = Path(path)
    key = (os.getpid(), threading.get_ident(), str(path.parent.resolve() / f".{name_of(path)}.lock"))
    _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Exclude all other writers of `path`, also those that were lent the same lock; held for the moment of writing."""
    with _flocked(path.parent.resolve() / f".{name_of(path)}.write.lock", path, _WRITING):
        yield


def name_of(path: Path) -> str:
    """NAME of the results file DIR/NAME.h5."""
    return path.name.removesuffix(".h5")


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Failures of the file system as ResultsError that names the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ResultsError(
            f"Cannot write results in {folder}: {reason}.", "Free space or choose another folder with --out."
        ) from error


@contextmanager
def _flocked(lock: Path, path: Path, wait: float) -> Iterator[None]:
    handle = _acquire(lock, path, wait)
    try:
        yield
    finally:
        # unlinked while still held: whoever waits on this file sees that its path is gone and tries anew
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _acquire(lock: Path, path: Path, wait: float) -> int:
    deadline = time.monotonic() + wait
    while True:
        with explained(path.parent):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_current(handle, lock):
                    os.ftruncate(handle, 0)
                    os.write(handle, str(os.getpid()).encode())
                    return handle
                os.close(handle)
                continue
            except BlockingIOError:
                owner = os.pread(handle, 20, 0).decode(errors="replace")
                os.close(handle)
            except OSError:
                os.close(handle)
                raise
        if time.monotonic() >= deadline:
            who = f" (process {owner})" if owner else ""
            raise ResultsError(
                f"{path} is in use by another run of specdiag{who}.",
                "Wait for it to end, or choose another --out.",
            )
        time.sleep(0.02)


def _is_current(handle: int, lock: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == lock.stat().st_ino
    except FileNotFoundError:
        return False


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
