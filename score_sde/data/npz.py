"""The user's own vectors: one .npz file, as `numpy.savez` writes it.

Its arrays:

    x            numbers (N, D): the training split, or all of the data
    x_test       numbers (M, D): the test split. Without it the last tenth of x, after a fixed
                 permutation, is held out.
    labels       integers (N,) of at least 0: classes, optional
    labels_test  integers (M,), where there are labels and x_test
    columns      text (D,): names of the columns, optional

Values become float32. Other arrays are ignored. Pickled objects are refused.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError, one_line
from score_sde.paths import local

_FEWEST = 10  # rows, so that a tenth is one


def describe(data_dir: str | None) -> DatasetInfo:
    """The file's shapes, columns and classes.

    Raises:
      UserError: one line, as `load`.
    """
    path, arrays = _read(data_dir)
    x = arrays["x"]
    splits = {split: len(_split(arrays, split).x) for split in ("train", "test")}
    num_classes = max((int(arrays[key].max()) + 1 for key in arrays if "labels" in key), default=0)
    columns: tuple[str, ...] = ()
    if "columns" in arrays:
        columns = tuple(map(str, arrays["columns"].tolist()))
        is_text = arrays["columns"].dtype.kind in "US" and arrays["columns"].ndim == 1
        if not is_text or len(set(columns)) != x.shape[1]:
            raise UserError(
                f"{_where(path)}: columns is {_kind(arrays['columns'])}; allowed are {x.shape[1]} "
                "different names, one for each column of x"
            )
    return DatasetInfo("npz", x.shape[1:], None, num_classes, splits, columns)


def load(split: str, data_dir: str | None = None) -> Arrays:
    """The file's `split`, as `score_sde.data.load` describes it.

    Args:
      split: "train" or "test".
      data_dir: path of the file.

    Raises:
      UserError: one line: a file or array that is missing or damaged, an array of another rank,
        dtype or length, too few rows, or a number that is not finite in float32.
    """
    return _split(_read(data_dir)[1], split)


def _split(arrays: Mapping[str, np.ndarray], split: str) -> Arrays:
    x, labels = arrays["x"], arrays.get("labels")
    if "x_test" in arrays:
        name = "_test" if split == "test" else ""
        x, labels = arrays[f"x{name}"], arrays.get(f"labels{name}")
    else:
        order = np.random.default_rng(0).permutation(len(x))
        held_out = len(x) // 10
        rows = order[-held_out:] if split == "test" else order[:-held_out]
        x, labels = x[rows], None if labels is None else labels[rows]
    classes = {} if labels is None else {"labels": labels.astype(np.int32)}
    return Arrays(x.astype(np.float32), classes)


def _read(data_dir: str | None) -> tuple[Path, dict[str, np.ndarray]]:
    """The file's path and its arrays, held against the module's docstring."""
    path = local(data_dir or "", "config.data.dir")
    if not data_dir or not path.is_file():
        raise UserError(
            f"config.data.dir = {data_dir!r}: allowed is the path of a .npz file with an array x"
        )
    try:
        # Pickled objects raise ValueError. Numbers and text need none.
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("it holds a single array")
        with opened as file:
            names = ("x", "x_test", "labels", "labels_test", "columns")
            arrays = {name: file[name] for name in names if name in file.files}
            there = ", ".join(file.files)
    except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        reason = one_line(error)[:100]
        raise UserError(f"{_where(path)}: not a .npz file of numbers ({reason})") from error
    if "x" not in arrays:
        raise UserError(f"{_where(path)}: has no array x; its arrays are {there or 'none'}")
    if "labels" in arrays and "x_test" in arrays and "labels_test" not in arrays:
        raise UserError(f"{_where(path)}: has labels and x_test, but no array labels_test")
    if "labels" not in arrays or "x_test" not in arrays:
        arrays.pop("labels_test", None)
    _check(path, arrays)
    return path, arrays


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    features = arrays["x"].shape[1] if arrays["x"].ndim == 2 else 0
    for name, rows in (("x", "N"), ("x_test", "M")):
        array = arrays.get(name)
        if array is None:
            continue
        expected = f"({rows}, {features if name == 'x_test' else 'D'})"
        numbers = array.dtype.kind in "fiu" and array.ndim == 2 and array.shape[1] > 0
        if not numbers or array.shape[1] != features:
            raise UserError(
                f"{_where(path)}: {name} is {_kind(array)}; allowed are numbers {expected}"
            )
        fewest = 1 if name == "x_test" else 2 if "x_test" in arrays else _FEWEST
        if len(array) < fewest:
            raise UserError(f"{_where(path)}: {name} has {len(array)} rows; at least {fewest}")
        _check_finite(path, name, array)
        labels = arrays.get(name.replace("x", "labels"))
        if labels is None:
            continue
        integers = labels.dtype.kind in "iu" and labels.shape == array.shape[:1]
        if not integers or labels.min() < 0 or labels.max() >= 2**31 - 1:
            reach = f" from {labels.min()} to {labels.max()}" if integers else ""
            raise UserError(
                f"{_where(path)}: {name.replace('x', 'labels')} is {_kind(labels)}{reach}; allowed "
                f"are integers of at least 0 and below 2**31 - 1, ({len(array)},)"
            )


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        places = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(places):
        row, column = places[0]
        raise UserError(
            f"{_where(path)}: {name} has {array[row, column]} in row {row}, column {column}; "
            "allowed are numbers that are finite in float32"
        )


def _where(path: Path) -> str:
    return f"config.data.dir: {path}"


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{array.shape}"
