"""Large arrays that are read a chunk at a time: memory does not grow with their number of rows."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from score_sde.data import Streamed
from score_sde.errors import DAMAGED, UserError, one_line
from score_sde.paths import whole, write_json

CHUNK, CHUNK_BYTES = 1024, 2**26  # rows at a time, and bytes of them, at most
ABOUT = "about.json"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Rows:
    """An array (N, ...) that is read a chunk at a time, as often as it is asked for.

    Attributes:
        shape: (N, ...).
        read: begins to read. It yields arrays of `chunk_of` rows, the last one with fewer.
    """

    shape: tuple[int, ...]
    read: Callable[[], Iterator[np.ndarray]]

    @staticmethod
    def of(array: np.ndarray | Streamed) -> "Rows":
        """The rows of an array in memory, or of items that are streamed."""
        size = chunk_of(array.shape, array.dtype.itemsize)
        starts = range(0, len(array), size)
        return Rows(array.shape, lambda: (array[begin : begin + size] for begin in starts))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.read()

    def at(self, indices: np.ndarray) -> "Rows":
        """The rows of ascending indices."""

        def read() -> Iterator[np.ndarray]:
            begin, held = 0, []
            for chunk in self:
                size = chunk_of(chunk.shape, chunk.itemsize)
                first, last = np.searchsorted(indices, (begin, begin + len(chunk)))
                held.append(chunk[indices[first:last] - begin])
                begin += len(chunk)
                if sum(map(len, held)) >= size:
                    found = np.concatenate(held)
                    yield found[:size]
                    held = [found[size:]]
            if any(map(len, held)):
                yield np.concatenate(held)

        return Rows((len(indices), *self.shape[1:]), read)

    def some(self, most: int, seed: int = 0) -> "Rows":
        """Random rows in their order, up to so many."""
        return self.at(np.sort(np.random.default_rng(seed).permutation(len(self))[:most]))

    def array(self) -> np.ndarray:
        """All rows, which memory must hold."""
        return np.concatenate([*self])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the shape and all rows."""
        found = hashlib.sha256(f"{self.shape}".encode())
        for chunk in self:
            found.update(np.ascontiguousarray(chunk).data)
        return found.hexdigest()


def chunk_of(shape: Sequence[int], itemsize: int = 1) -> int:
    """How many rows of an array (N, ...) are read at a time."""
    return max(1, min(CHUNK, CHUNK_BYTES // (math.prod(shape[1:]) * itemsize or 1)))


def of_npz(path: Path, name: str) -> Rows:
    """An array of a .npz file, which is unpacked as it is read; then damage raises UserError.

    Raises:
        ValueError, KeyError, OSError, BadZipFile: there is no such array of numbers.
    """
    with _opened(path, name) as member:
        shape, is_fortran, dtype = _HEADERS[npy.read_magic(member)](member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are never read")
    if is_fortran:  # its rows are not together
        with path.open("rb") as file, np.load(file) as arrays:
            return Rows.of(arrays[name])

    def read() -> Iterator[np.ndarray]:
        with _undamaged(f"{path}: {name}"), _opened(path, name) as member:
            _HEADERS[npy.read_magic(member)](member)
            size = chunk_of(shape, dtype.itemsize)
            for begin in range(0, shape[0], size):
                part = (min(size, shape[0] - begin), *shape[1:])
                content = member.read(math.prod(part) * dtype.itemsize)
                yield np.frombuffer(content, dtype).reshape(part)
            if member.read(1):  # its end, where the checksum is compared
                raise ValueError("it is longer than its header says")

    return Rows(shape, read)


@contextmanager
def _undamaged(where: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into a UserError."""
    try:
        yield
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or one_line(error)[:100]
        raise UserError(
            f"{where} is damaged ({reason}); it has to come back from a copy"
        ) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    """One array's file within a .npz."""
    with (
        path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
        archive.open(f"{name}.npy") as member,
    ):
        yield member


# --- Folders of features --------------------------------------------------------------------------


def key_of(about: Mapping[str, Any]) -> str:
    """The name of a folder: it differs where what the features are of, or made by, differs."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def stored(
    folder: Path,
    about: Mapping[str, Any],
    images: Rows,
    features: Callable[[np.ndarray], np.ndarray],
) -> Iterator[int]:
    """Fill a folder with the features of images, a file `NNNNNN.npy` float32 (n, F) for each of
    their chunks; `about.json` says what they are. Files that are there are not made again.

    Args:
        folder: made where it is missing.
        about: JSON.
        images: of which they are.
        features: of a chunk.

    Yields:
        the number of images in each chunk that was there.

    Raises:
        UserError: the folder cannot be written.
    """
    chunks = -(-len(images) // chunk_of(images.shape))
    write_json(folder / ABOUT, {**about, "n": len(images), "chunks": chunks})
    for number, chunk in enumerate(images):
        path = folder / f"{number:06d}.npy"
        if _is_whole(path, len(chunk)):
            yield len(chunk)
        else:
            found = io.BytesIO()  # numpy's own errors of a full disk do not say so
            np.save(found, features(chunk))
            with whole(path) as file:
                file.write(found.getbuffer())


def read_stored(folder: Path) -> tuple[Rows, dict[str, Any]]:
    """The features of a folder that `stored` has filled, and what they are.

    Raises:
        UserError: one line: there are none, or a part is missing or damaged; also as they are read.
    """
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        n, chunks = about["n"], about["chunks"]
        paths = sorted(folder.glob("[0-9]*.npy"))[:chunks]
        if len(paths) < chunks:
            raise ValueError(f"{chunks - len(paths)} of its {chunks} files are missing")
        shapes = [_shape(path) for path in paths]
        width = shapes[0][1]
        if sum(rows for rows, _ in shapes) != n or any(each != width for _, each in shapes):
            raise ValueError(f"its files do not have {n} rows of {width}")
    except DAMAGED as error:
        raise UserError(f"{folder}: no folder of features ({one_line(error)[:100]})") from error
    return Rows((n, width), lambda: map(_read, paths)), about


def _is_whole(path: Path, rows: int) -> bool:
    """Whether a file has the features of so many rows; a damaged one is made again."""
    try:
        return _shape(path)[0] == rows == len(_read(path))
    except (UserError, *DAMAGED):
        return False


def _shape(path: Path) -> tuple[int, int]:
    """Rows and width of a file of features; ValueError or LookupError for a damaged one."""
    with path.open("rb") as file:
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
        if len(shape) != 2 or dtype.kind not in "fiu" or file.seek(0, io.SEEK_END) != size:
            raise ValueError(f"{path.name} has no features, or not all of them")
        return shape[0], shape[1]


def _read(path: Path) -> np.ndarray:
    with _undamaged(f"{path}"), path.open("rb") as file:
        found: np.ndarray = np.load(file, allow_pickle=False)
        if not np.isfinite(found).all():
            raise ValueError("it has values that are not finite")
        return found
