"""Freed memory is kept for reuse, counted by page faults."""

import platform
import subprocess
import sys

import pytest

WORK = """
import resource
import numpy as np
from pyrodyn.infer.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(2**20) for _ in range(10)]  # 8 MB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_blocks_are_reused_without_page_faults():
    run = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after < 0.1 * before
