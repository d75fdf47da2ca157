"""Keep the memory that a training step frees for the next step.

A step on the CPU allocates and frees the same tens of megabytes every time. The C library of Linux
returns large blocks to the system at once, and every page of them is mapped and zeroed again in the
next step: 10 to 20 % of the time of an LFADS step at the sizes of ``benchmarks/step.py``.
"""

import ctypes
import platform

# Names and meanings from the manual page mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is kept (the most that every version of glibc accepts)."""

KEPT = 2**30
"""Bytes of free memory that are kept; memory beyond them is returned to the system."""


def keep_freed_memory() -> bool:
    """Make the C library of this process keep up to `KEPT` bytes of freed memory.

    Returns:
        Whether the C library accepted the setting (only glibc does; otherwise nothing changes).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))
