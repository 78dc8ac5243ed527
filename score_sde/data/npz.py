"""The user's own vectors or images: one .npz file, as `numpy.savez` writes it.

`score_sde.data.arrays` says which arrays it has.
"""

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib import format as npy

from score_sde.data import arrays
from score_sde.data.info import Arrays, DatasetInfo, file_of
from score_sde.data.streamed import Raw, Stamp
from score_sde.errors import UserError, one_line

# Of the two versions of the format that hold numbers and text.
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


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
      UserError: one line: a file or array that is missing or damaged, or as of `arrays.load`; a
        compressed array that is to be streamed.
    """
    return arrays.load(_table(data_dir), split, stream)


def _table(data_dir: str | None) -> arrays.Table:
    path = file_of(data_dir, "a .npz file with an array x")
    where = f"config.data.dir: {path}"
    kinds, digest = {}, hashlib.sha256()
    with _damage(where), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            # Of the content, as the directory has it and reading compares it.
            digest.update(f"{name}:{member.file_size}:{member.CRC};".encode())
            if name != member.filename:
                kinds[name] = _kind(archive, member)

    def read(name: str) -> np.ndarray:
        with _damage(where), np.load(path, allow_pickle=False) as file:
            array: np.ndarray = file[name]
            return array

    def rows(name: str) -> Raw:
        allowed = "allowed are files of numpy.savez, or config.data.stream=false"
        with _damage(where), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{where}: {name} is compressed and cannot be streamed; {allowed}")
            # Where a member begins only its own header says, 30 bytes and two names.
            file.seek(member.header_offset + 26)
            names = sum(np.frombuffer(file.read(4), "<u2").tolist())
            file.seek(member.header_offset + 30 + names)
            shape, by_columns, dtype = _header(file, member)
            stamp, start = Stamp.of(os.fstat(file.fileno())), file.tell()
        if by_columns:
            raise UserError(f"{where}: {name} has Fortran's order, not streamed; {allowed}")
        return Raw(path, where, stamp, start, shape[1:], dtype)

    return arrays.Table("npz", where, kinds, read, digest.hexdigest, rows)


def _kind(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> arrays.Kind:
    """An array's shape and dtype, from its header; the ValueError of one that does not fit it."""
    with archive.open(member) as file:
        shape, _, dtype = _header(file, member)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds pickled objects, which are never read")
    size = start + math.prod(shape) * dtype.itemsize
    if size != member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, by its header {size}")
    return shape, dtype


def _header(file: Any, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{member.filename} has the unknown version {version}")
    shape, by_columns, dtype = _HEADERS[version](file)
    return shape, by_columns, dtype


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what a damaged or foreign file raises into a UserError."""
    try:
        yield
    except (
        *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = one_line(error)[:100]
        raise UserError(f"{where}: not a .npz file of numbers ({reason})") from error
