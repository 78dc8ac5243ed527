"""The user's own vectors or images: one HDF5 file, whose datasets are those of a .npz file.

`score_sde.data.arrays` says which. Groups are ignored. Nothing outside the file is read.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import arrays
from score_sde.data.info import Arrays, DatasetInfo, check_fits, file_of
from score_sde.data.streamed import Stamp, at_once, unchanged
from score_sde.errors import UserError, one_line

# Deflate makes at most 1032 bytes of one. A dataset of more has nothing in most of its chunks.
_DENSEST = 2000


def describe(data_dir: str | None) -> DatasetInfo:
    """The file's shapes, columns and classes; errors as of `load`."""
    return arrays.describe(_table(data_dir))


def load(split: str, data_dir: str | None = None, stream: bool = False) -> Arrays:
    """The file's `split`, as `score_sde.data.load` describes it.

    Args:
      split: "train" or "test".
      data_dir: path of the file.
      stream: leave images in the file until they are asked for.

    Raises:
      UserError: one line: h5py is not installed, the file is missing, damaged or points to others,
        or as of `arrays.load`.
    """
    return arrays.load(_table(data_dir), split, stream)


def _table(data_dir: str | None) -> arrays.Table:
    path = file_of(data_dir, "an HDF5 file with a dataset x")
    where = f"config.data.dir: {path}"

    opened = partial(_opened, path, where)

    def read(name: str) -> np.ndarray:
        with opened() as file:
            is_text = file[name].dtype.kind == "O"
            return np.asarray(file[name].asstr()[()], str) if is_text else np.asarray(file[name])

    def digest() -> str:
        found = hashlib.sha256()
        with opened() as file:
            for name in kinds:
                found.update(f"{name}:{kinds[name]};".encode())
                shape, dtype = kinds[name]
                row_bytes = math.prod(shape[1:]) * dtype.itemsize
                check_fits(row_bytes, where)
                many = at_once(row_bytes)
                for start in range(0, shape[0] if shape and dtype.kind != "U" else 0, many):
                    found.update(file[name][start : start + many].tobytes())
        return found.hexdigest()

    with opened() as file:
        kinds = {name: _kind(file, name) for name in file if _is_dataset(file, name)}

    def rows(name: str) -> _Rows:
        return _Rows(path, where, Stamp.of(path.stat()), name)

    return arrays.Table("hdf5", where, kinds, read, digest, rows)


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Any]:
    """The file; what is wrong with it is a UserError."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "config.data.name = 'hdf5': needs h5py: pip install 'score-sde[hdf5]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = one_line(error)[:100]
        raise UserError(f"{where}: not an HDF5 file of numbers ({reason})") from error


@dataclass(frozen=True)
class _Rows:
    """Reads rows of a dataset of images."""

    path: Path
    where: str
    stamp: Stamp
    name: str

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(rows, return_inverse=True)  # h5py takes increasing rows only
        with unchanged(self.path, self.stamp, self.where), _opened(self.path, self.where) as file:
            found = np.asarray(file[self.name][wanted])
        return found[places]


def _is_dataset(file: Any, name: str) -> bool:
    """Whether it is an array; the ValueError of one that lies elsewhere."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link; allowed are datasets of the file itself")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        return False
    if found.external or found.is_virtual:
        raise ValueError(f"{name} lies in other files; allowed are datasets of the file itself")
    stored = found.id.get_storage_size()
    if found.nbytes > max(2**30, _DENSEST * stored):  # to read it would not end
        raise ValueError(f"{name} has {found.nbytes:,} bytes, of which {stored:,} are in the file")
    return True


def _kind(file: Any, name: str) -> arrays.Kind:
    import h5py

    dtype = file[name].dtype
    if h5py.check_string_dtype(dtype):
        dtype = np.dtype(str)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects; allowed are numbers and text")
    return file[name].shape, dtype
