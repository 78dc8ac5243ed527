"""The facts of a data set, and its splits as arrays."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from score_sde.data.streamed import Streamed
from score_sde.errors import UserError
from score_sde.paths import local

# More is a mistake, such as numbers of items in place of classes: it would fill the memory.
MOST_CLASSES = 16384


class Arrays(NamedTuple):
    """A split in memory.

    Attributes:
        x: images, uint8 (N, H, W, C), or vectors, float32 (N, D). Images that are streamed are a
            `Streamed`, which is indexed in the same way.
        condition: arrays with a row for each item: `labels` int32 (N,) where the set has classes,
            `vector` float32 (N, k) where columns were named as conditions. Before they are named,
            the further arrays that can be, float32 (N,) or (N, k).
    """

    x: np.ndarray
    condition: dict[str, np.ndarray]


class Decoding(NamedTuple):
    """How files of images become arrays.

    Attributes:
        size: height and width of all images; None for their own.
        channels: 1 or 3; 0 for their own.
        skip_corrupt: leave out files that are no images, instead of ending there.
        stream: leave the images in their files until they are asked for; None: where they are many.
    """

    size: tuple[int, int] | None = None
    channels: int = 0
    skip_corrupt: bool = False
    stream: bool | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """The facts that a run needs of its data. A workdir keeps them.

    The fields from `columns` to `bin_width` are for vectors.

    Attributes:
        name: of the set.
        shape: of one item: (H, W, C) of an image, (D,) of a vector without its condition.
        levels: of an image's pixels, whose values are 0 ... levels - 1; None for vectors.
        num_classes: 0 for a set without labels.
        splits: number of items in each split.
        columns: names of the D columns; "0", "1", ... where the set has no names.
        mean: of each column of the training split, in the data's units.
        std: their standard deviations, likewise.
        bin_width: of each column, for values that were rounded or counted; None for others.
        condition: names of the k columns that became `condition["vector"]`.
        condition_mean: of each of them in the training split. The set's own vectors are
            standardised by this and the next: (v - mean) / std.
        condition_std: their standard deviations.
        classes: their names, where the files have some.
        digest: of the contents of the user's own files of images; "" for others.
        skipped: the user's files that were left out, and why; no part of what makes sets equal.
        further: names of arrays that `condition` may name beside the columns; likewise no part.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    num_classes: int
    splits: Mapping[str, int]
    columns: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bin_width: tuple[float, ...] | None = None
    condition: tuple[str, ...] = ()
    condition_mean: tuple[float, ...] = ()
    condition_std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    digest: str = ""
    skipped: tuple[str, ...] = field(default=(), compare=False)
    further: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.levels is None and not self.columns:
            object.__setattr__(self, "columns", tuple(map(str, range(self.shape[0]))))

    def standardised(self, values: ArrayLike) -> np.ndarray:
        """Rows of the condition's columns in the data's units, (n, k), as a model is given them:
        float32. ValueError for another shape."""
        rows = np.asarray(values, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.condition) or not self.condition:
            columns = ", ".join(self.condition) or "none, as there is no condition"
            raise ValueError(f"values are {rows.shape}: allowed are rows of the columns {columns}")
        return ((rows - self.condition_mean) / self.condition_std).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """All fields, as what JSON keeps."""
        return dataclasses.asdict(dataclasses.replace(self, splits=dict(self.splits)))

    @staticmethod
    def from_facts(facts: Mapping[str, Any]) -> "DatasetInfo":
        """The object that `facts` describes, also after JSON.

        Raises:
          TypeError: fields that are missing, of another type, or unknown to this version.
        """
        if not isinstance(facts, Mapping):
            raise TypeError(f"{facts!r:.40}")
        kinds = get_type_hints(DatasetInfo)
        if strange := facts.keys() - kinds.keys():
            raise TypeError(f"{min(strange)} is unknown to this version")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()
        }
        for name, kind in kinds.items():
            value = values.setdefault(name, getattr(DatasetInfo, name, None))
            if not _is(value, kind):
                raise TypeError(f"{name} = {value!r:.40}")
        if len(values["shape"]) != (1 if values["levels"] is None else 3):
            raise TypeError(f"shape = {values['shape']}")
        if not {"train", "test"} <= values["splits"].keys():
            raise TypeError(f"splits = {values['splits']}")
        return DatasetInfo(**values)


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats, too."""
    of = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is(value, each) for each in of)
    if isinstance(value, Mapping) and of:
        return get_origin(kind) is Mapping and all(_is(each, of[1]) for each in value.values())
    if isinstance(value, tuple) and of:
        return get_origin(kind) is tuple and all(_is(each, of[0]) for each in value)
    return not of and isinstance(value, int | float if kind is float else kind)


def check(arrays: Arrays, info: DatasetInfo, split: str) -> None:
    """Holds a split against its `info`: number of items, shape, dtypes and ranges.

    Raises:
      UserError: one line that names the first thing that does not fit.
    """
    x, count = arrays.x, info.splits[split]
    where = f"config.data.name: the {split} split of {info.name}"
    expected, dtype = (count, *info.shape), np.dtype(np.uint8 if info.levels else np.float32)
    if x.shape != expected or x.dtype != dtype:
        raise UserError(f"{where} is {x.dtype}{x.shape}, expected {dtype}{expected}")
    if info.levels and info.levels < 256 and (most := _largest(x)) >= info.levels:
        raise UserError(f"{where} has pixel {most}, allowed are 0 to {info.levels - 1}")
    if not info.levels and not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise UserError(
            f"{where} has {x[row, column]} in row {row}, column {info.columns[column]}: "
            "allowed are numbers that are finite in float32"
        )
    labels: Any = arrays.condition.get("labels")
    if (labels is not None) != (info.num_classes > 0):
        there, expected_ones = ("no labels", "some") if labels is None else ("labels", "none")
        raise UserError(f"{where} has {there}, expected {expected_ones}")
    if labels is None:
        return
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise UserError(
            f"{where} has labels {labels.dtype}{labels.shape}, expected int32({count},)"
        )
    if not count or isinstance(labels, Streamed):  # of a set whose classes are declared
        return
    if labels.min() < 0 or labels.max() >= info.num_classes:
        raise UserError(
            f"{where} has labels {labels.min()} to {labels.max()}, "
            f"allowed are 0 to {info.num_classes - 1}"
        )


def _largest(x: np.ndarray | Streamed) -> int:
    parts = x.parts() if isinstance(x, Streamed) else (x,)
    return max((int(part.max()) for part in parts if part.size), default=0)


def held_out(count: int) -> dict[str, np.ndarray]:
    """The rows of each split of a set that has none: the test split is the last tenth of a fixed
    permutation."""
    order = np.random.default_rng(0).permutation(count)
    return {"train": order[: count - count // 10], "test": order[count - count // 10 :]}


def taken(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The items x[rows] of (N, D, …). Of most of them x is overwritten, so that they are not held
    twice."""
    if 2 * len(rows) < len(x):
        return x[rows]
    for place in range(x.shape[1]):
        x[: len(rows), place] = x[rows, place]
    return x[: len(rows)]


def file_of(data_dir: str | None, allowed: str) -> Path:
    """The user's file; UserError unless there is one that can be read."""
    path = local(data_dir or "", "config.data.dir")
    if not data_dir or not path.is_file():
        raise UserError(f"config.data.dir = {data_dir!r}: allowed is the path of {allowed}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"config.data.dir: {path} cannot be read ({error.strerror})") from error
    return path


def check_fits(needed: int, where: str) -> None:
    """Refuses more bytes than there is memory, before they are taken."""
    if needed > (memory := _memory()):
        there = f"this machine has {memory / 2**30:.1f} GiB of memory"
        raise UserError(f"{where}: its arrays take {needed / 2**30:.1f} GiB; {there}")


def is_large(needed: int) -> bool:
    """Whether so many bytes of images are streamed: they would take half of the memory."""
    return needed > _memory() / 2


def _memory(root: Path = Path("/")) -> int:
    """The bytes that this process may take: the machine's, or the least limit of its control
    groups, such as a container's. `root` has the folders proc and sys."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, name = root / "sys/fs/cgroup", "memory.max"  # of version 2
        if controllers:
            mount, name = mount / controllers, "memory.limit_in_bytes"
        own = mount / path.lstrip("/")
        # A container may see the path as the host has it, which is not there: then the mount holds.
        for place in (own, *own.parents):
            if place.is_relative_to(mount) and (place / name).is_file():
                text = (place / name).read_text().strip()
                limits += [int(text)] if text.isdecimal() else []  # else "max"
    return min(limits)
