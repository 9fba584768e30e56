"""glibc gives every large freed block back to the kernel at once, which then has to clear its pages for the next one."""

from __future__ import annotations

import os
import sys

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
BLOCK = 2**26  # blocks up to here come from the heap
KEPT = 2**28  # free bytes at the heap's end that are kept
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep() -> bool:
    """Let this process keep freed memory for its next tensors; False where there is no glibc or the user has chosen.

    Networks allocate and free the same few megabytes at every layer; clearing pages for them took 5 to 25 % of the time.
    Up to KEPT bytes more stay with the process. For processes of the command line: a library leaves this to its program.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return False
    # not at start-up, where --help would pay for it
    import ctypes

    try:
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(_M_MMAP_THRESHOLD, BLOCK) and library.mallopt(_M_TRIM_THRESHOLD, KEPT))
    except (OSError, AttributeError):
        return False
