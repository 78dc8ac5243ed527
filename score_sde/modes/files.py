"""Files that belong together, and digests of arrays."""

import hashlib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from jax.typing import ArrayLike

from score_sde.data import Streamed


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until files that belong together are all written."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def digest(arrays: Iterable[ArrayLike | Streamed]) -> str:
    """A digest of the arrays: equal for equal arrays, also where one is streamed."""
    found = hashlib.sha256()
    for array in arrays:
        for part in array.parts() if isinstance(array, Streamed) else (array,):
            found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()
