"""Freed memory stays with the process, as far as its C library can be asked."""

import os
import platform
import subprocess
import sys

import pytest

from score_sde.memory import SET_BY_USERS

# Three blocks of 19 MiB, written and freed in each round. Each page that was given back faults once
# more: 3 * 19 MiB / 4 KiB = 14592 of them, without large pages.
ROUNDS = """
import ctypes, resource
import score_sde.memory
if {asked}:
    score_sde.memory.keep_freed_memory()
libc = ctypes.CDLL(None)
PR_SET_THP_DISABLE = 41
libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(19 << 20) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 19 << 20)
    for block in blocks:
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def _faults(asked: bool, **variables: str) -> int:
    """Page faults of the last round."""
    environment = {k: v for k, v in os.environ.items() if k not in SET_BY_USERS} | variables
    command = [sys.executable, "-c", ROUNDS.format(asked=asked)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(out.stdout.split()[-1])


@glibc
def test_freed_memory_is_taken_again():
    assert 100 * _faults(asked=True) <= _faults(asked=False)


@glibc
def test_what_the_environment_says_holds():
    always = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    assert 2 * _faults(asked=True, **always) >= _faults(asked=False)
