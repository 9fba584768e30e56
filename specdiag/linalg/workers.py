"""Independent pieces of one computation on several threads, each with one BLAS thread.

BLAS threads inside a batch of small problems lose against threads over the batch, and collapse when the
machine is shared. Pieces must not depend on the number of workers, so that the result does not either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import scipy.linalg  # noqa: F401  (its BLAS must be loaded before the controller looks for libraries)
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> list[Result]:
    """[function(item) for item in items] on `workers` threads (default: torch's number of threads)."""
    pieces = list(items)
    count = min(workers or torch.get_num_threads(), len(pieces))
    with _controller().limit(limits=1, user_api="blas"):
        if count <= 1:
            return [function(piece) for piece in pieces]
        with ThreadPoolExecutor(count, initializer=_alone) as pool:
            return list(pool.map(function, pieces))


def alone(function: Callable[[], Result]) -> Result:
    """function() with one thread of torch and of BLAS: many small products waste time on waking others up."""
    with _controller().limit(limits=1, user_api="blas"):
        if torch.get_num_threads() == 1:
            return function()
        with ThreadPoolExecutor(1, initializer=_alone) as pool:
            return pool.submit(function).result()


def _alone() -> None:
    """Let torch use one thread in this worker; the setting is the thread's own."""
    # torch sets a new thread's number when it first asks for it, and would undo an earlier setting
    torch.get_num_threads()
    for library in _controller().lib_controllers:
        if library.user_api == "openmp":
            library.set_num_threads(1)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
