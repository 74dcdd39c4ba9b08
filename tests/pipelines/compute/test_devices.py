import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from pipelines.compute import devices

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4, 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
devices.keep_freed_memory(torch.device("cpu"))
faults()
print(given_back, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    # Pages that the system had to clear, for 16 MiB per step; few if pages are huge.
    assert given_back > 10 * kept + 100
