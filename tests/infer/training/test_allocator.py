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

given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_blocks_are_not_fetched_again():
    told = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    given_back, kept = map(int, told.stdout.split())
    assert kept < 0.1 * given_back
