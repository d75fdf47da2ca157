"""Keep what a training step frees for the next step.

A step on the CPU allocates and frees the same tens of megabytes every time. The C library of Linux
hands large blocks back to the system at once, and every page of them is fetched and zeroed again in
the next step: a tenth to a fifth of LFADS' step at the sizes of ``benchmarks/step.py``.
"""

import ctypes
import platform

# Names and meanings from the manual page mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is kept (the most that every version of glibc accepts)."""

KEPT = 2**30
"""Free bytes above which the rest is handed back all the same."""


def keep_freed_memory() -> bool:
    """Let the C library of this process keep freed memory, at most `KEPT` bytes.

    Returns:
        Whether it could be told (glibc alone can; elsewhere nothing changes).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))
