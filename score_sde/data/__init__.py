"""Data sets as arrays in memory: `DATASETS` lists them, `describe` says what a set
holds, `load` reads a split.

Nothing here knows of models or configs, and importing it costs no more than numpy.

A new set is one file with an `INFO` and a `load(split, data_dir)`, and one line in `DATASETS`. A
user's own `Dataset` needs no line.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from score_sde.data import cifar10, digits, fashion_mnist, npz, own, toys, vectors
from score_sde.data.info import Arrays, DatasetInfo, check
from score_sde.errors import UserError

__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "DatasetInfo",
    "describe",
    "is_only_described",
    "load",
]

SPLITS = ("train", "test")


class Dataset(NamedTuple):
    """A data set of the list.

    Attributes:
      info: its facts; a function of the data's folder where the files hold them. For vectors it has
        shape and columns; `describe` adds the constants that are computed from the data.
      load: `load(split, data_dir) -> Arrays`; None for a set that is known for its models only.
        All of a vector's columns are in `x`.
    """

    info: DatasetInfo | Callable[[str | None], DatasetInfo]
    load: Callable[[str, str | None], Arrays] | None


# Colour photographs that the published models were trained on, and that nothing here reads: image
# size, training and test examples. Sizes are those of the models' images, where the set has no size
# (LSUN) or other ones (CelebA). LSUN has a validation set only to test on, CelebA-HQ and FFHQ none.
_PHOTOGRAPHS = {
    "celeba": (64, 162_770, 19_962),
    "lsun_bedroom": (256, 3_033_042, 300),
    "lsun_church": (256, 126_227, 300),
    "celebahq": (1024, 30_000, 0),
    "ffhq": (1024, 70_000, 0),
}

# Images that nothing is known of: those of a model that came from elsewhere.
_IMAGES = DatasetInfo("images", (0, 0, 3), 256, 0, {"train": 0, "test": 0})

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(digits.INFO, digits.load),
    "cifar10": Dataset(cifar10.INFO, cifar10.load),
    "fashion_mnist": Dataset(fashion_mnist.INFO, fashion_mnist.load),
    "moons": Dataset(toys.MOONS, toys.load_moons),
    "swiss_roll": Dataset(toys.SWISS_ROLL, toys.load_swiss_roll),
    "npz": Dataset(npz.describe, npz.load),
    "images": Dataset(_IMAGES, None),
    own.NAME: Dataset(own.describe, None),
    **{
        name: Dataset(
            DatasetInfo(name, (size, size, 3), 256, 0, {"train": train, "test": test}), None
        )
        for name, (size, train, test) in _PHOTOGRAPHS.items()
    },
}


def is_only_described(name: str) -> bool:
    """Whether a set's images cannot be read, so that it is known for its models only."""
    return name in DATASETS and DATASETS[name].load is None


def describe(
    dataset: str | Dataset,
    data_dir: str | None = None,
    *,
    image_size: int = 0,
    channels: int = 0,
    num_classes: int = 0,
    condition: Sequence[str | int] = (),
    bin_width: float | Sequence[float] | None = None,
) -> DatasetInfo:
    """The facts that a run needs of a set. Those of images are known; those of vectors are computed
    from the training split.

    Args:
      dataset: a key of `DATASETS`, or a set of the user's own.
      data_dir: as for `load`.
      image_size: height and width of the models' images, for a set that is only described; 0: its
        own.
      channels: likewise, their channels.
      num_classes: likewise, their classes.
      condition: names or indices of the columns of vectors that become the condition.
      bin_width: of vectors whose values were rounded or counted, in the data's units: a number for
        each remaining column, or one for all; None for continuous ones.

    Raises:
      UserError: one line: as `load`; an image size, columns or widths that cannot be; a column that
        is constant.
    """
    known = _known(dataset)
    info = _info(known, data_dir)
    sizes = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
    if not info.levels:
        for key, size in sizes.items():
            if size:
                raise UserError(f"config.data.{key} = {size}: allowed is 0 for vectors")
        train = load(known, "train", data_dir)
        return vectors.complete(info, train.x, tuple(condition), bin_width)
    if condition or bin_width:
        key, value = ("condition", condition) if condition else ("bin_width", bin_width)
        raise UserError(
            f"config.data.{key} = {value!r}: allowed for vectors; {info.name} is images"
        )
    usual = {
        "image_size": info.shape[0],
        "channels": info.shape[-1],
        "num_classes": info.num_classes,
    }
    for key, its in usual.items():
        if known.load and sizes[key] not in (0, its):
            unit = {"image_size": "pixels", "num_classes": "classes"}.get(key, key)
            allowed = f"allowed are 0 (its own {its} {unit}) for {info.name}"
            raise UserError(f"config.data.{key} = {sizes[key]}: {allowed}")
    size, wide, classes = (sizes[key] or its for key, its in usual.items())
    if not size:
        allowed = f"allowed are positive integers, as {info.name} has any size"
        raise UserError(f"config.data.image_size = 0: {allowed}")
    return replace(info, shape=(size, size, wide), num_classes=classes)


def load(
    dataset: str | Dataset,
    split: str,
    data_dir: str | None = None,
    info: DatasetInfo | None = None,
) -> Arrays:
    """Reads a whole split; where it has to, downloads it first.

    Args:
      dataset: a key of `DATASETS`, or a set of the user's own.
      split: "train" or "test".
      data_dir: folder of the user's files and of downloads; None or "" for the default
        (`score_sde.data.sources.cache_folder`). For `npz` the file. Built-in sets need none.
      info: that of the run, of `describe`. Its condition columns are taken out of vectors and
        standardised by its constants. None leaves all columns in `x`.

    Returns:
      `Arrays(x, condition)` in the set's own order, N as `DatasetInfo.splits` says: images uint8
      (N, H, W, C) of values 0 ... levels - 1, or vectors float32 (N, D) in the data's units.

    Raises:
      UserError: one line: an unknown name or split, a set that is only described, a damaged or
        foreign file, a set that cannot be had, with the ways to get it, or files whose columns are
        not those of `info`.
    """
    known = _known(dataset)
    found = _info(known, data_dir)
    if known.load is None:
        readable = (name for name, each in DATASETS.items() if each.load)
        raise UserError(
            f"config.data.name = {found.name!r}: its images cannot be read, only its models can be "
            f"used; sets that can are {', '.join(readable)}"
        )
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    arrays = known.load(split, data_dir)
    check(arrays, found, split)
    return arrays if info is None else vectors.separated(arrays, found, info)


def _known(dataset: str | Dataset) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if dataset not in DATASETS:
        raise UserError(f"config.data.name: {dataset!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[dataset]


def _info(dataset: Dataset, data_dir: str | None) -> DatasetInfo:
    info = dataset.info if isinstance(dataset.info, DatasetInfo) else dataset.info(data_dir)
    if set(info.splits) != set(SPLITS):
        raise UserError(
            f"config.data.name: {info.name} has the splits {', '.join(info.splits) or 'none'}; "
            f"allowed are {', '.join(SPLITS)}"
        )
    return info
