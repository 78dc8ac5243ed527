"""Data sets, in memory or streamed: `DATASETS` lists them, `describe` says what a set holds, `load`
reads a split.

Nothing here knows of models or configs, and importing it costs no more than numpy.

A new set is one file with an `INFO` and a `load(split, data_dir)`, and one line in `DATASETS`. One
of files of images, wherever they lie, is a `listing(data_dir)`. A user's own `Dataset` needs no
line.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from score_sde.data import (
    archive,
    cifar10,
    digits,
    fashion_mnist,
    folder,
    hdf5,
    idx,
    images,
    npz,
    own,
    tfds,
    toys,
    vectors,
)
from score_sde.data.decoding import MOST_PIXELS
from score_sde.data.info import Arrays, DatasetInfo, Decoding, check, is_large
from score_sde.data.streamed import Streamed
from score_sde.errors import UserError

__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "DatasetInfo",
    "Streamed",
    "describe",
    "image_sizes",
    "is_only_described",
    "load",
    "sides",
]

SPLITS = ("train", "test")


class Dataset(NamedTuple):
    """A data set of the list.

    Attributes:
      info: its facts; a function of the data's folder where the files hold them. For vectors it has
        shape and columns; `describe` adds the constants that are computed from the data.
      load: `load(split, data_dir) -> Arrays`; None for a set that is known for its models only.
        All of a vector's columns are in `x`.
      files: of a set of files of images, a function of the data's folder.
      decodes: images are decoded to the size that a config asks for; then `info` and `load` are
        given a `Decoding`, too.
      streams: images may stay in their files: `load` takes `stream`, or finds it in the `Decoding`.
    """

    info: DatasetInfo | Callable[..., DatasetInfo]
    load: Callable[..., Arrays] | None
    files: Callable[[str | None], images.Listing] | None = None
    decodes: bool = False
    streams: bool = False


def _of_files(listing: Callable[[str | None], images.Listing]) -> Dataset:
    """The set of the images in files."""

    def describe_files(data_dir: str | None, decoding: Decoding) -> DatasetInfo:
        return images.describe(listing(data_dir), decoding)

    def load_files(split: str, data_dir: str | None, decoding: Decoding) -> Arrays:
        return images.load(listing(data_dir), decoding, split)

    return Dataset(describe_files, load_files, listing, decodes=True, streams=True)


def _of_tfds(name: str) -> Dataset:
    """The set that TFDS has prepared under a name."""
    parts = partial(tfds.describe, name), partial(tfds.load, name)
    return Dataset(*parts, decodes=True, streams=True)


class _Datasets(dict[str, Dataset]):
    """The list. It also has `tfds:NAME` for every NAME."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, str) and name.startswith(tfds.PREFIX)
        )

    def __missing__(self, name: str) -> Dataset:
        if name not in self:
            raise KeyError(name)
        return _of_tfds(name.removeprefix(tfds.PREFIX))


# Colour photographs that the published models were trained on. Under these names they are only
# described; `tfds:NAME` and folders read them. Image size, training and test examples. Sizes are
# those of the models' images, where the set has no size (LSUN) or other ones (CelebA). LSUN has a
# validation set only to test on, CelebA-HQ and FFHQ none.
_PHOTOGRAPHS = {
    "celeba": (64, 162_770, 19_962),
    "lsun_bedroom": (256, 3_033_042, 300),
    "lsun_church": (256, 126_227, 300),
    "celebahq": (1024, 30_000, 0),
    "ffhq": (1024, 70_000, 0),
}

# Images that nothing is known of: those of a model that came from elsewhere.
_IMAGES = DatasetInfo("images", (0, 0, 3), 256, 0, {"train": 0, "test": 0})

DATASETS: dict[str, Dataset] = _Datasets(
    {
        "digits": Dataset(digits.INFO, digits.load),
        "cifar10": Dataset(cifar10.INFO, cifar10.load),
        "fashion_mnist": Dataset(fashion_mnist.INFO, fashion_mnist.load),
        "moons": Dataset(toys.MOONS, toys.load_moons),
        "swiss_roll": Dataset(toys.SWISS_ROLL, toys.load_swiss_roll),
        "npz": Dataset(npz.describe, npz.load, streams=True),
        "hdf5": Dataset(hdf5.describe, hdf5.load, streams=True),
        "idx": Dataset(idx.describe, idx.load),
        "folder": _of_files(folder.listing),
        "zip": _of_files(archive.listing),
        "tfds:NAME": _of_tfds("NAME"),  # for lists of the names
        "images": Dataset(_IMAGES, None),
        own.NAME: Dataset(own.describe, None),
        **{
            name: Dataset(
                DatasetInfo(name, (size, size, 3), 256, 0, {"train": train, "test": test}), None
            )
            for name, (size, train, test) in _PHOTOGRAPHS.items()
        },
    }
)


def is_only_described(name: str) -> bool:
    """Whether a set's images cannot be read, so that it is known for its models only."""
    return name in DATASETS and DATASETS[name].load is None


def image_sizes(dataset: Dataset, data_dir: str | None) -> Counter[tuple[int, int]]:
    """How many of a set's files of images have each height and width, by their headers.

    Raises:
      UserError: one line: there is no such folder or file, or it cannot be read.
    """
    assert dataset.files, "a set without files"
    there = images.headers(dataset.files(data_dir))
    return Counter((height, width) for height, width, _ in there)


def sides(image_size: int | Sequence[int]) -> tuple[int, int] | None:
    """The height and width that a config asks for: one number is both, 0 none. UserError for what
    is no size, or more pixels than an image may have."""
    if image_size == 0:
        return None
    both = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if len(both) != 2 or min(both) < 1 or math.prod(both) > MOST_PIXELS:
        allowed = f"positive integers, tuples (height, width), up to {MOST_PIXELS:,} pixels"
        raise UserError(f"config.data.image_size = {image_size}: allowed are {allowed}")
    return both


def describe(
    dataset: str | Dataset,
    data_dir: str | None = None,
    *,
    image_size: int | Sequence[int] = 0,
    channels: int = 0,
    num_classes: int = 0,
    condition: Sequence[str | int] = (),
    bin_width: float | Sequence[float] | None = None,
    skip_corrupt: bool = False,
    stream: bool | None = None,
) -> DatasetInfo:
    """The facts that a run needs of a set. Those of known images are known; those of vectors are
    computed from the training split, those of files found in them.

    Args:
      dataset: a key of `DATASETS`, or a set of the user's own.
      data_dir: as for `load`.
      image_size: height and width of the images, for files that are decoded and for a set that is
        only described: one number, or (height, width); 0: its own.
      channels: likewise, their channels.
      num_classes: likewise, their classes, for a set that is only described.
      condition: names or indices of the columns of vectors that become the condition, or names of
        further arrays.
      bin_width: of vectors whose values were rounded or counted, in the data's units: a number for
        each remaining column, or one for all; None for continuous ones.
      skip_corrupt: leave out files that are no images.
      stream: as for `load`.

    Raises:
      UserError: one line: as `load`; an image size, columns or widths that cannot be; a column that
        is constant.
    """
    known = _known(dataset)
    decoding = Decoding(sides(image_size), channels, skip_corrupt, stream)
    info = _info(known, data_dir, decoding)
    if not info.levels:
        asked: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "num_classes": num_classes,
        }
        for key, size in asked.items():
            if size:
                raise UserError(f"config.data.{key} = {size}: allowed is 0 for vectors")
    elif bin_width or (condition and isinstance(known.info, DatasetInfo)):
        key, value = ("bin_width", bin_width) if bin_width else ("condition", condition)
        raise UserError(
            f"config.data.{key} = {value!r}: allowed for vectors; {info.name} is images"
        )
    else:
        info = _sized(known, info, image_size, channels, num_classes)
        if not condition:
            return info
    train = _arrays(known, "train", data_dir, info, decoding)
    return vectors.complete(info, train, tuple(condition), bin_width)


def _sized(
    known: Dataset,
    info: DatasetInfo,
    image_size: int | Sequence[int],
    channels: int,
    num_classes: int,
) -> DatasetInfo:
    """The facts of images with the sizes that a config asks for."""
    height, width, own_channels = info.shape
    own_size = height if height == width else (height, width)
    for key, asked, its, unit in (
        ("image_size", sides(image_size), (height, width), f"{own_size} pixels"),
        ("channels", channels, own_channels, f"{own_channels} channels"),
        ("num_classes", num_classes, info.num_classes, f"{info.num_classes} classes"),
    ):
        if known.load and asked and asked != its:
            shown = image_size if key == "image_size" else asked
            allowed = f"allowed are 0 (its own {unit}) for {info.name}"
            raise UserError(f"config.data.{key} = {shown}: {allowed}")
    height, width = sides(image_size) or (height, width)
    if not height:
        allowed = f"allowed are positive integers, as {info.name} has any size"
        raise UserError(f"config.data.image_size = 0: {allowed}")
    shape = (height, width, channels or own_channels)
    return replace(info, shape=shape, num_classes=num_classes or info.num_classes)


def load(
    dataset: str | Dataset,
    split: str,
    data_dir: str | None = None,
    info: DatasetInfo | None = None,
    *,
    skip_corrupt: bool = False,
    stream: bool | None = None,
) -> Arrays:
    """Reads a split, or opens one that is streamed; where it has to, downloads it first.

    Args:
      dataset: a key of `DATASETS`, or a set of the user's own.
      split: "train" or "test".
      data_dir: folder of the user's files and of downloads; None or "" for the default
        (`score_sde.data.sources.cache_folder`). For `npz`, `hdf5` and `zip` the file. Built-in sets
        need none.
      info: that of the run, of `describe`. Files are decoded to its shape. Its condition columns
        are taken out and standardised by its constants. None leaves all columns in `x`.
      skip_corrupt: leave out files that are no images.
      stream: leave images in their files until they are asked for. None: where both splits would
        take more than half of the machine's memory, of a set that can be streamed.

    Returns:
      `Arrays(x, condition)` in the set's own order, N as `DatasetInfo.splits` says: images uint8
      (N, H, W, C) of values 0 ... levels - 1, or vectors float32 (N, D) in the data's units.

    Raises:
      UserError: one line: an unknown name or split, a set that is only described, a damaged or
        foreign file, a set that cannot be had, with the ways to get it, or files whose columns are
        not those of `info`.
    """
    known = _known(dataset)
    decoding = Decoding(None, 0, skip_corrupt, stream)
    if known.decodes and info is not None:
        height, width, channels = info.shape
        decoding = Decoding((height, width), channels, skip_corrupt, stream)
    found = _info(known, data_dir, decoding)
    arrays = _arrays(known, split, data_dir, found, decoding)
    if info is None:
        return arrays
    if info.digest != found.digest and info.name == found.name and info.digest:
        held_out = f"the {split} split may hold some of the others"
        print(f"note: {data_dir}: not the images of the run; {held_out}", file=sys.stderr)
    return vectors.separated(arrays, found, info)


def _arrays(
    known: Dataset, split: str, data_dir: str | None, info: DatasetInfo, decoding: Decoding
) -> Arrays:
    """A split as it is, held against its facts."""
    if known.load is None:
        readable = (name for name, each in DATASETS.items() if each.load)
        raise UserError(
            f"config.data.name = {info.name!r}: its images cannot be read, only its models can be "
            f"used; sets that can are {', '.join(readable)}"
        )
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    stream = decoding.stream
    if stream and not (known.streams and info.levels):
        allowed = f"allowed is False for {info.name}"
        raise UserError(f"config.data.stream = True: {allowed}, which is read into memory")
    if stream is None and known.streams and info.levels:
        stream = is_large(sum(info.splits.values()) * math.prod(info.shape))
    more: dict[str, Any] = {"stream": stream} if stream else {}
    arrays = (
        known.load(split, data_dir, decoding._replace(stream=bool(stream)))
        if known.decodes
        else known.load(split, data_dir, **more)
    )
    check(arrays, info, split)
    return arrays


def _known(dataset: str | Dataset) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if dataset not in DATASETS:
        raise UserError(f"config.data.name: {dataset!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[dataset]


def _info(dataset: Dataset, data_dir: str | None, decoding: Decoding) -> DatasetInfo:
    info = dataset.info
    if not isinstance(info, DatasetInfo):
        info = info(data_dir, *((decoding,) if dataset.decodes else ()))
    if set(info.splits) != set(SPLITS):
        raise UserError(
            f"config.data.name: {info.name} has the splits {', '.join(info.splits) or 'none'}; "
            f"allowed are {', '.join(SPLITS)}"
        )
    return info
