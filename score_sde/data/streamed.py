"""Images that stay where they are until they are asked for, and the order in which training asks.

Worker processes import this file: it must not import JAX, nor must what it imports.
"""

import math
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from score_sde.errors import UserError

_AT_ONCE, _BYTES_AT_ONCE = 1000, 2**24  # items that are read where all are wanted, and their bytes


def at_once(item_bytes: int) -> int:
    """How many items of a size are read at a time where all are wanted."""
    return max(1, min(_AT_ONCE, _BYTES_AT_ONCE // max(1, item_bytes)))


@dataclass(frozen=True)
class Streamed:
    """Items of a split, read when they are asked for: `x[rows]` and `len(x)` as of an array.

    Attributes:
        read: gives the items of some rows of the source, (n,) integers -> (n, *item). It is
            pickled for the workers.
        rows: of the source, in the order of the split.
        item: the shape of one item.
        dtype: of the items.
        digests: of what the source's rows are made from, where that is known: equal ones are of
            equal items.
    """

    read: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    item: tuple[int, ...]
    dtype: np.dtype
    digests: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all items as an array."""
        return (len(self.rows), *self.item)

    @property
    def nbytes(self) -> int:
        """The bytes of all items as an array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.asarray(self.rows[index])
        if not rows.size:
            return np.empty((*rows.shape, *self.item), self.dtype)
        return self.read(rows.reshape(-1)).reshape(*rows.shape, *self.item)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        found, start = np.empty(self.shape, self.dtype), 0
        for part in self.parts():
            found[start : start + len(part)] = part
            start += len(part)
        return found if dtype is None else found.astype(dtype)

    def parts(self) -> Iterator[np.ndarray]:
        """All items in order, some at a time."""
        many = at_once(math.prod(self.item) * self.dtype.itemsize)
        for start in range(0, len(self), many):
            yield self[start : start + many]

    def part(self, rows: Any) -> "Streamed":
        """Some of the items, in another order."""
        return replace(self, rows=self.rows[rows])


class Stamp(NamedTuple):
    """What tells a file from what it was."""

    bytes: int
    changed: int

    @staticmethod
    def of(found: os.stat_result) -> "Stamp":
        return Stamp(found.st_size, found.st_mtime_ns)


@contextmanager
def unchanged(path: Path, stamp: Stamp, where: str) -> Any:
    """Opens a file that is as it was; UserError for another, or one that cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            if Stamp.of(os.fstat(file.fileno())) != stamp:
                raise UserError(f"{where}: the file has changed since the start")
            yield file
    except OSError as error:
        raise gone(where, error.strerror or f"{error}") from error


def gone(where: str, why: str) -> UserError:
    """The error of data that could be read at the start."""
    return UserError(f"{where}: cannot be read any more ({why})")


@dataclass(frozen=True)
class Raw:
    """Reads rows of an array that lies in a file as in memory.

    Attributes:
        path: of the file.
        where: what errors begin with.
        stamp: of the file at the start.
        offset: of the first row, in bytes.
        item: the shape of a row.
        dtype: of the array.
    """

    path: Path
    where: str
    stamp: Stamp
    offset: int
    item: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.item), self.dtype)
        with unchanged(self.path, self.stamp, self.where) as file:
            for into, row in zip(found, rows.tolist(), strict=True):
                file.seek(self.offset + row * into.nbytes)
                if fill(file, into.reshape(-1).view(np.uint8).data) < into.nbytes:
                    raise gone(self.where, "it ends too early")
        return found


def fill(file: BinaryIO, buffer: memoryview) -> int:
    """Reads into a buffer until it is full or the file ends; how many bytes that are."""
    done = 0
    # One MiB at a time: gzip makes a second buffer as large as the request. (typing's BinaryIO
    # lacks the `readinto` that all these files have.)
    while count := file.readinto(buffer[done : done + 2**20]):  # type: ignore[attr-defined]
        done += count
    return done


# --- The order ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False  # it is shared by every batch of the epoch
    return order


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """The examples of update number ``step`` (from 0), (batch_size,) int32.

    The epochs are permutations laid end to end and cut into batches, so that every example comes
    once in an epoch and none is dropped; a batch may span two epochs, or many where the data set
    is smaller than the batch. A resumed run needs to know nothing but the step.
    """
    start = step * batch_size
    stop = start + batch_size
    parts = []
    while start < stop:
        epoch, offset = divmod(start, num_examples)
        part = _permutation(seed, epoch, num_examples)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Batches:
    """Reads the part of a batch that a host's devices get, in the order of ``batch_indices``.

    Attributes:
        arrays: a nested mapping of ``Streamed`` and arrays with the N examples along the first
            axis.
        batch_size: examples of one update over all hosts.
        seed: of the order.
        positions: of the host's examples within the batch.
    """

    arrays: Mapping[str, Any]
    batch_size: int
    seed: int
    positions: np.ndarray

    def __call__(self, step: int) -> dict[str, Any]:
        rows = batch_indices(self.seed, step, self.batch_size, len(self.arrays["x"]))
        return _at(self.arrays, rows[self.positions])


def _at(arrays: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {
        name: _at(array, rows) if isinstance(array, Mapping) else array[rows]
        for name, array in arrays.items()
    }


def begin_worker(index: int, count: int) -> None:
    """Prepares a worker process; the arguments are Grain's."""
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"  # Grain imports JAX: no worker may take an accelerator
    warnings.simplefilter("ignore")  # Pillow's, of odd files
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose training was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
