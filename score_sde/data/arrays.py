"""Named arrays of the user's own as a data set: the layout that .npz and HDF5 files share.

    x            numbers (N, D), vectors; or uint8 (N, H, W) or (N, H, W, C) with C 1 or 3, images.
                 The training split, or all of the data. Images may be called `images`, as our own
                 results call them.
    x_test       likewise (M, …): the test split. Without it the last tenth of x, after a fixed
                 permutation, is held out.
    labels       integers (N,) of at least 0: classes, optional
    labels_test  integers (M,), where there are labels and x_test
    columns      text (D,): names of the columns of vectors, optional
    OTHER        numbers (N,) or (N, k), which `data.condition` may name
    OTHER_test   likewise (M,) or (M, k), where there is x_test

Vectors and others become float32. Arrays of another length are ignored. Pickled objects are
refused.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from score_sde.data.info import MOST_CLASSES, Arrays, DatasetInfo, check_fits, held_out, taken
from score_sde.data.streamed import Streamed
from score_sde.errors import UserError

Kind = tuple[tuple[int, ...], np.dtype]  # of an array: its shape and dtype


@dataclass(frozen=True)
class Table:
    """Arrays that are read one at a time.

    Attributes:
        name: of the set: that of the format.
        where: what errors begin with: the key, and the file.
        kinds: of all arrays, by their names.
        read: reads one of them; raises UserError.
        digest: of the arrays' contents.
        rows: gives what reads rows of one of them from the file, picklable; raises UserError where
            they cannot be read apart.
    """

    name: str
    where: str
    kinds: Mapping[str, Kind]
    read: Callable[[str], np.ndarray]
    digest: Callable[[], str]
    rows: Callable[[str], Callable[[np.ndarray], np.ndarray]]

    @property
    def data(self) -> str:
        """The name of the array of the data."""
        return "images" if "images" in self.kinds and "x" not in self.kinds else "x"

    @property
    def has_test(self) -> bool:
        """Whether there are separate arrays of the test split."""
        return f"{self.data}_test" in self.kinds

    @property
    def are_images(self) -> bool:
        """Whether the data are images; else they are vectors."""
        return len(self.kinds[self.data][0]) > 2


def describe(table: Table) -> DatasetInfo:
    """The table's shapes, columns and classes.

    Raises:
      UserError: one line: an array of another rank, dtype or length than the module's docstring
        says, too few rows, more than fits into the memory, or a number that is not finite in
        float32.
    """
    _check(table)
    num_classes = max(
        (int(table.read(key).max()) + 1 for key in _keys(table, "labels") if key in table.kinds),
        default=0,
    )
    shape = table.kinds[table.data][0]
    if table.are_images:
        counts = [table.kinds[key][0][0] for key in _keys(table, table.data)]
        test = counts[1] if table.has_test else counts[0] // 10
        splits = {"train": counts[0] - (0 if table.has_test else test), "test": test}
        shape = (*shape[1:3], shape[3] if len(shape) == 4 else 1)
        levels = 256
        if "levels" in table.kinds:  # as `--mode sample` writes it
            size, dtype = table.kinds["levels"]
            found: Any = _words((size, dtype)) if size else table.read("levels")
            if size or dtype.kind not in "iu" or not 2 <= found <= 256:
                raise UserError(f"{table.where}: levels is {found}; allowed are 2 to 256")
            levels = int(found)
        digest, further = table.digest(), tuple(_others(table))
        return DatasetInfo(
            table.name, shape, levels, num_classes, splits, digest=digest, further=further
        )
    splits = {split: len(load(table, split).x) for split in ("train", "test")}
    columns: tuple[str, ...] = ()
    if "columns" in table.kinds:
        size, dtype = table.kinds["columns"]
        if size == shape[1:] and dtype.kind in "US":
            names = table.read("columns")
            text = np.char.decode(names, "utf-8", "replace") if names.dtype.kind == "S" else names
            columns = tuple(map(str, text.tolist()))
        if len(set(columns)) != shape[1]:
            raise UserError(
                f"{table.where}: columns is {_words(table.kinds['columns'])}; allowed are "
                f"{shape[1]} different names, one for each column of x"
            )
    further = tuple(_others(table))
    return DatasetInfo(table.name, shape[1:], None, num_classes, splits, columns, further=further)


def load(table: Table, split: str, stream: bool = False) -> Arrays:
    """The table's `split`, as `score_sde.data.load` describes it; errors as of `describe`.

    Args:
      table: the arrays.
      split: "train" or "test".
      stream: leave images in the file until they are asked for.

    Raises:
      UserError: also for vectors that are to be streamed.
    """
    _check(table)
    suffix = "_test" if table.has_test and split == "test" else ""
    name = table.data + suffix
    if not stream:
        _check_fits(table, name, *(other + suffix for other in _beside(table)))
    count = table.kinds[name][0][0]
    rows = np.arange(count) if table.has_test else held_out(count)[split]
    if stream and not table.are_images:
        raise UserError("config.data.stream = True: allowed is False for vectors")
    if stream:
        shape, dtype = table.kinds[name]
        item = (*shape[1:3], shape[3] if len(shape) == 4 else 1)
        x: Any = Streamed(table.rows(name), rows, item, dtype)
    else:
        x = table.read(name)
        if not table.are_images:
            _check_finite(table.where, name, x)
            x = x.astype(np.float32)
        elif x.ndim == 3:
            x = x[..., np.newaxis]
        x = x if table.has_test else taken(x, rows)
    condition: dict[str, np.ndarray] = {}
    if "labels" in table.kinds:
        condition["labels"] = table.read(f"labels{suffix}").astype(np.int32)[rows]
    for name in _others(table):
        with np.errstate(over="ignore"):  # it is found where a config names the array
            condition[name] = table.read(name + suffix).astype(np.float32)[rows]
    return Arrays(x, condition)


def _check_fits(table: Table, *names: str) -> None:
    """Refuses arrays that take more than the memory, before they are read."""

    def bytes_of(name: str) -> int:
        shape, dtype = table.kinds[name]
        # Of vectors there is a copy in float32, and for their constants one in float64.
        copies = 16 if len(shape) == 2 and dtype.kind in "fiu" else 0
        return math.prod(shape) * (dtype.itemsize + copies)

    check_fits(sum(bytes_of(name) for name in names if name in table.kinds), table.where)


def _beside(table: Table) -> tuple[str, ...]:
    """The arrays that are read beside the data, at once."""
    return ("labels", "columns", *_others(table))


def _keys(table: Table, name: str) -> tuple[str, ...]:
    """The names of one array's splits."""
    return (name, f"{name}_test") if table.has_test else (name,)


def _others(table: Table) -> list[str]:
    """The further arrays that have a number, or some, for each item."""
    known = {table.data, "x", "labels", "columns"}
    counts = [table.kinds[key][0][0] for key in _keys(table, table.data)]

    def fits(name: str) -> bool:
        kinds = [table.kinds.get(key) for key in _keys(table, name)]
        return all(
            kind is not None
            and kind[1].kind in "fiub"
            and len(kind[0]) in (1, 2)
            and kind[0][0] == count
            for kind, count in zip(kinds, counts, strict=True)
        )

    return [n for n in table.kinds if n not in known and not n.endswith("_test") and fits(n)]


def _check(table: Table) -> None:
    kinds, where = table.kinds, table.where
    if table.data not in kinds:
        there = ", ".join(kinds) or "none"
        raise UserError(f"{where}: has no array x or images; its arrays are {there}")
    if "labels" in kinds and table.has_test and "labels_test" not in kinds:
        raise UserError(f"{where}: has labels and {table.data}_test, but no array labels_test")
    for name in _keys(table, table.data):
        _check_data(table, name)
    read = () if table.are_images else (table.data,)  # images may be streamed
    names = (key for name in (*read, *_beside(table)) for key in _keys(table, name))
    _check_fits(table, *names)
    for name in _keys(table, "labels"):
        if name in kinds:
            _check_labels(table, name, kinds[name.replace("labels", table.data)][0][0])


def _check_data(table: Table, name: str) -> None:
    """Refuses an array of data by its shape, dtype or length."""
    (shape, dtype), first = table.kinds[name], table.kinds[table.data][0]
    if len(shape) > 2:
        fits = dtype == np.uint8 and len(shape) <= 4 and 0 not in shape[1:]
        fits &= len(shape) == 3 or shape[3] in (1, 3)
        expected = "uint8 (N, H, W) or (N, H, W, C), with C 1 or 3, of values 0 to 255"
    else:
        fits = dtype.kind in "fiu" and len(shape) == 2 and shape[1] > 0
        expected = "numbers (N, D), or images uint8 (N, H, W) or (N, H, W, C)"
    if shape[1:] != first[1:]:
        fits, expected = False, f"the shape of {table.data}: (M, {', '.join(map(str, first[1:]))})"
    if not fits:
        raise UserError(
            f"{table.where}: {name} is {_words(table.kinds[name])}; allowed are {expected}"
        )
    fewest = 1 if name.endswith("_test") else 2 if table.has_test else 10  # a tenth of which is one
    if shape[0] < fewest:
        raise UserError(f"{table.where}: {name} has {shape[0]} rows; at least {fewest}")


def _check_labels(table: Table, name: str, count: int) -> None:
    shape, dtype = table.kinds[name]
    integers = dtype.kind in "iu" and shape == (count,)
    labels = table.read(name) if integers else np.zeros(1)
    if not integers or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        reach = f" from {labels.min()} to {labels.max()}" if integers else ""
        raise UserError(
            f"{table.where}: {name} is {_words(table.kinds[name])}{reach}; allowed "
            f"are integers from 0 to {MOST_CLASSES - 1}, ({count},)"
        )


def _check_finite(where: str, name: str, array: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        places = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(places):
        row, column = places[0]
        raise UserError(
            f"{where}: {name} has {array[row, column]} in row {row}, column {column}; "
            "allowed are numbers that are finite in float32"
        )


def _words(kind: Kind) -> str:
    return f"{kind[1]}{kind[0]}"
