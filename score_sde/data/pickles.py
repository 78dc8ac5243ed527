"""Reads the official CIFAR-10 pickles without running anything that they name.

A pickle is a program: it may call anything that can be imported. The official batches, written by
Python 2, name three things, all of numpy. Each is an inert record of its arguments here, and any
other name ends the reading.
"""

import io
import pickle

import numpy as np

from score_sde.errors import UserError


class _Dtype:
    """Stands for `numpy.dtype`: keeps its name; byte order does not matter to single bytes."""

    def __init__(self, name: bytes, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for numpy's `_reconstruct`, which makes an empty array, and for the array: its state.

    Both stand-ins are classes with a `__setstate__`, so that a stream cannot set attributes.
    """

    state: object = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "numpy.ndarray",  # named as an argument, never called
    ("numpy.core.multiarray", "_reconstruct"): _Array,
}


class _Refused(pickle.UnpicklingError):
    """The stream names something that is not allowed; the message is for the user."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it wants to import {module}.{name}, and only numpy arrays are read")
        return _ALLOWED[module, name]


def read_batch(raw: bytes, source: str) -> tuple[np.ndarray, list[int]]:
    """Reads one pickled batch.

    Args:
      raw: the file's bytes: a dict with at least `data`, an array uint8 (N, K), and `labels`.
      source: the file's name, for messages.

    Returns:
      `data` as uint8 (N, K), and the N labels.

    Raises:
      UserError: one line: a damaged file, one that names anything but numpy arrays, or one that
        holds something else.
    """
    try:
        batch = _Reader(io.BytesIO(raw), encoding="bytes").load()
    except _Refused as error:
        raise UserError(f"config.data.dir: {source} is refused: {error}") from error
    except Exception as error:  # the pickle module promises no list of what a stream raises
        raise UserError(f"config.data.dir: {source} is damaged or not a pickle") from error
    foreign = UserError(
        f"config.data.dir: {source} is not an official batch: "
        "expected a dict of data, an array uint8 (N, K), and labels, N whole numbers"
    )
    if not isinstance(batch, dict):
        raise foreign
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise foreign
    match data.state:  # ndarray.__setstate__: version, shape, dtype, Fortran order, bytes
        case (
            int(),
            (int() as rows, int() as columns),
            _Dtype(name=b"u1"),
            bool() as fortran,
            bytes() as pixels,
        ):
            pass
        case _:
            raise foreign
    if (
        min(rows, columns) < 0
        or len(pixels) != rows * columns
        or len(labels) != rows
        or not all(type(label) is int for label in labels)
    ):
        raise foreign
    shaped = np.frombuffer(pixels, np.uint8).reshape((rows, columns), order="F" if fortran else "C")
    return shaped, labels
