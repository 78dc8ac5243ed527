"""Arrays of a program's own: what `score_sde.train` takes as data."""

from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from score_sde.data.info import MOST_CLASSES, Arrays, DatasetInfo
from score_sde.errors import UserError, require

NAME = "arrays"


def describe(data_dir: str | None = None) -> NoReturn:
    """Raise UserError: only a program has these data."""
    raise UserError(
        f"config.data.name = {NAME!r}: the data were given from Python; allowed are "
        "score_sde.train(config, data=...), or another set of the same columns or image size"
    )


def arrays(
    x: ArrayLike,
    labels: ArrayLike | None = None,
    vector: ArrayLike | None = None,
    levels: int = 256,
) -> tuple[DatasetInfo, Arrays]:
    """Return arrays as a data set that has no test split, and its training split. Vectors keep the
    columns of `vector` as their last ones, which `info.condition` names.

    Args:
      x: vectors, numbers (N, D); or images, uint8 (N, H, W, C) of values 0 ... levels - 1.
      labels: classes, integers (N,) from 0 on.
      vector: the condition of vectors in its own units, numbers (N, k).
      levels: of images.

    Raises:
      ValueError: another shape or dtype.
    """
    x = np.asarray(x)
    if x.ndim == 3:
        x = x[..., np.newaxis]
    are_vectors = x.ndim == 2 and x.dtype.kind in "fiu" and x.shape[1] > 0
    if not are_vectors and (
        x.ndim != 4 or x.dtype != np.uint8 or x.shape[3] not in (1, 3) or 0 in x.shape[1:3]
    ):
        allowed = "numbers (N, D) and uint8 (N, H, W, C) with C of 1 or 3"
        raise ValueError(f"data is {x.dtype} {x.shape}: allowed are {allowed}")
    shape, known, number = x.shape[1:], {}, len(x)
    require(number > 0, "data", shape, "at least one item")
    require(2 <= levels <= 256, "levels", levels, "integers from 2 to 256")
    if labels is not None:
        known["labels"] = _labels(labels, number)
    condition: tuple[str, ...] = ()
    if vector is not None:
        rows = np.asarray(vector)
        if not are_vectors or rows.ndim != 2 or len(rows) != number or rows.dtype.kind not in "fiu":
            allowed = f"numbers ({number}, k) beside data of vectors"
            raise ValueError(f"vector is {rows.dtype} {rows.shape}: allowed are {allowed}")
        condition = tuple(f"condition {column}" for column in range(rows.shape[1]))
        x = np.concatenate([x, rows], axis=1)
    classes = int(known["labels"].max()) + 1 if known else 0
    splits = {"train": number, "test": 0}
    if not are_vectors:
        return DatasetInfo(NAME, shape, levels, classes, splits), Arrays(x, known)
    columns = (*map(str, range(shape[0])), *condition)
    info = DatasetInfo(
        NAME, x.shape[1:], None, classes, splits, columns=columns, condition=condition
    )
    with np.errstate(over="ignore"):  # a check finds what float32 does not hold
        return info, Arrays(x.astype(np.float32), known)


def _labels(labels: ArrayLike, number: int) -> np.ndarray:
    found = np.asarray(labels)
    integers = found.shape == (number,) and found.dtype.kind in "iu"
    if not integers or found.min() < 0 or found.max() >= MOST_CLASSES:
        allowed = f"integers ({number},) from 0 to {MOST_CLASSES - 1}"
        raise ValueError(f"labels are {found.dtype} {found.shape}: allowed are {allowed}")
    return found.astype(np.int32)
