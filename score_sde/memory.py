"""The memory of this process."""

import ctypes
import os
import sys

# Numbers of mallopt's parameters (glibc, malloc.h), and the largest values that glibc itself would
# choose on 64-bit machines.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGEST = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}  # bytes
SET_BY_USERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next allocation: up to 64 MiB at the end of each heap.

    XLA:CPU takes memory for the convolutions of every evaluation, and frees it after each. By
    default glibc may give it back to the system every time. Whether glibc does so depends on what
    the process has freed before. Each page then has to be mapped and filled with zeros again:
    sampling took up to 1.3 times as long (benchmarks/README.md).

    Nothing is done for other C libraries, or where one of ``SET_BY_USERS`` is in the environment.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SET_BY_USERS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, size in LARGEST.items():
        if not mallopt(parameter, size):  # refused
            return
