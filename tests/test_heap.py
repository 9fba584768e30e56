"""Freed memory stays with a process of the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from specdiag import heap
print(heap.keep() if sys.argv[1] == "keep" else False)
def work():
    a, b = (np.zeros(500_000) + 1 for _ in range(2))
    return a + b
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **environment},
    )
    answer, count = done.stdout.split()
    return answer, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    (kept, few), (_, many) = faults("keep"), faults("leave")
    assert kept == "True"
    # 150 blocks of 4 MB, each of 1,000 pages
    assert many > 20 * max(few, 1000)


def test_what_the_user_chose_stays() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
