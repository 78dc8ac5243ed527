"""Data sets as arrays in memory: `DATASETS` lists them, `describe` says what a
set holds, `load` reads a split.

Nothing here knows of models or configs, and importing it costs no more than numpy.

A new set is one file with an `INFO` and a `load(split, data_dir)`, and one line in `DATASETS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from score_sde.data import cifar10, described, digits, fashion_mnist, npz, toys, vectors
from score_sde.data.info import Arrays, DatasetInfo, check
from score_sde.errors import UserError

__all__ = ["DATASETS", "Arrays", "Dataset", "DatasetInfo", "describe", "load"]


class Dataset(NamedTuple):
    """A data set of the list.

    Attributes:
      info: what is known of it; a function of the data's folder where that is in the files. That of
        vectors gives shape and columns; `describe` adds what is computed of the data.
      load: `load(split, data_dir) -> Arrays`; None for a set that is known for its models only.
        All of a vector's columns are in `x`.
    """

    info: DatasetInfo | Callable[[str | None], DatasetInfo]
    load: Callable[[str, str | None], Arrays] | None


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(digits.INFO, digits.load),
    "cifar10": Dataset(cifar10.INFO, cifar10.load),
    "fashion_mnist": Dataset(fashion_mnist.INFO, fashion_mnist.load),
    "moons": Dataset(toys.MOONS, toys.load_moons),
    "swiss_roll": Dataset(toys.SWISS_ROLL, toys.load_swiss_roll),
    "npz": Dataset(npz.describe, npz.load),
    **{found.name: Dataset(found, None) for found in described.INFOS},
}


def describe(
    name: str,
    data_dir: str | None = None,
    condition: Sequence[str | int] = (),
    bin_width: Sequence[float] = (),
) -> DatasetInfo:
    """What a run needs to know of a set. That of images is known; that of vectors is read off the
    training split.

    Args:
      name: a key of `DATASETS`.
      data_dir: as for `load`.
      condition: names or indices of the columns of vectors that become the condition.
      bin_width: of vectors whose values were rounded or counted, in the data's units: a number for
        each remaining column, or one for all; none for continuous ones.

    Raises:
      UserError: one line: as `load`; columns or widths that cannot be; a column that is constant.
    """
    found = _described(name, data_dir)
    if not found.levels:
        train = load(name, "train", data_dir)
        return vectors.complete(found, train.x, tuple(condition), tuple(bin_width))
    for key, value in (("condition", condition), ("bin_width", bin_width)):
        if value:
            raise UserError(f"config.data.{key} = {value!r}: allowed is () for {name}, images")
    return found


def load(
    name: str, split: str, data_dir: str | None = None, info: DatasetInfo | None = None
) -> Arrays:
    """Reads a whole split; where it has to, downloads it first.

    Args:
      name: a key of `DATASETS`.
      split: "train" or "test".
      data_dir: folder of the user's files, and of what is downloaded; None or "" for the default
        (`score_sde.data.sources.cache_folder`). For `npz` the file. Built-in sets need none.
      info: that of the run. Its condition columns are taken out of vectors and standardised by its
        constants. None leaves all columns in `x`.

    Returns:
      `Arrays(x, condition)` in the set's own order, N as `DatasetInfo.splits` says: images uint8
      (N, H, W, C) of values 0 ... levels - 1, or vectors float32 (N, D) in the data's units.

    Raises:
      UserError: one line: an unknown name or split, a set that is only described, a damaged or
        foreign file, a set that cannot be had, with the ways to get it, or files whose columns are
        not those of `info`.
    """
    found = _described(name, data_dir)
    reader = DATASETS[name].load
    if reader is None:
        readable = (known for known, dataset in DATASETS.items() if dataset.load)
        raise UserError(
            f"config.data.name = {name!r}: its images cannot be read, only its models can be used; "
            f"sets that can are {', '.join(readable)}"
        )
    if split not in found.splits:
        raise UserError(f"split: {split!r} is not one of {', '.join(found.splits)}")
    arrays = reader(split, data_dir)
    check(arrays, found, split)
    return arrays if info is None else vectors.separated(arrays, found, info)


def _described(name: str, data_dir: str | None) -> DatasetInfo:
    if name not in DATASETS:
        raise UserError(f"config.data.name: {name!r} is not one of {', '.join(DATASETS)}")
    found = DATASETS[name].info
    return found if isinstance(found, DatasetInfo) else found(data_dir)
