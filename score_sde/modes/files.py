"""Files that are written whole or not at all, and digests of arrays."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jax.typing import ArrayLike

from score_sde.paths import written


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to. It takes this path's place when all is written. A missing folder is
    made.

    Raises:
        UserError: it cannot be written. The file that was there stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    with written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


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


def digest(arrays: Iterable[ArrayLike]) -> str:
    """A digest of the arrays: equal for equal arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
