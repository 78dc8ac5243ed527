"""Any set of images that TensorFlow Datasets (TFDS) has prepared as array_record: `tfds:NAME`.

    tfds:celeb_a, tfds:lsun/church_outdoor, tfds:celeb_a_hq/256, tfds:oxford_flowers102, …

It is read without TensorFlow. The set's feature `image` is the image and, where there is one, its
`label` the class. The test split is TFDS's `test`, else its `validation`; a set that has neither
has no test split.

Images are decoded as files of images are (`score_sde.data.decoding`). The original code of Song et
al. (2021, arXiv:2011.13456) does to LSUN the same at 256 pixels: it cuts out the middle square,
256 x 256 pixels as LSUN has them. Other sizes it resizes by the same antialiased bicubic filter,
then drops fractions of a level where we round, and at 128 pixels it takes a bilinear filter. Of
CelebA it takes the middle 140 x 140 pixels and an antialiased bilinear filter, and so do we; it
leaves the result unrounded, and we round it to 8 bits.
"""

import hashlib
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from score_sde import paths
from score_sde.data import prepared
from score_sde.data.decoding import CorruptImageError, decode
from score_sde.data.info import Arrays, DatasetInfo, Decoding, check_fits
from score_sde.data.streamed import Streamed, at_once
from score_sde.errors import UserError, one_line
from score_sde.progress import bar

PREFIX = "tfds:"
_AT_ONCE = 100  # images that a thread decodes, at most
_MIDDLE = {"celeb_a": 140}  # pixels that the original code cuts out
# What TFDS raises of damaged or missing files: the record reader, JSON and protobuf, a feature or
# split that is not there.
_DAMAGED = (RuntimeError, ValueError, OSError, KeyError, IndexError)


@dataclass(frozen=True)
class _Records:
    """Reads one feature of rows of a split."""

    folder: Path
    split: str
    feature: str
    shape: tuple[int, ...]
    middle: int = 0
    where: str = field(default="", compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "source"}

    @cached_property
    def source(self) -> Any:
        """The records, opened once in each process."""
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.folder)
        images = {
            name: tfds.decode.SkipDecoding()
            for name, each in builder.info.features.items()
            if isinstance(each, tfds.features.Image)
        }
        return builder.as_data_source(self.split, decoders=images)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        try:
            examples = self.source.__getitems__(rows.tolist())
            found = [self._item(example[self.feature]) for example in examples]
        except (CorruptImageError, *_DAMAGED) as error:
            raise UserError(f"{self.where} cannot be read: {one_line(error)[:200]}") from error
        dtype = np.uint8 if self.shape else np.int32
        return np.asarray(found, dtype).reshape(len(rows), *self.shape)

    def _item(self, stored: Any) -> Any:
        if not self.shape:
            return stored
        height, width, channels = self.shape
        return decode(io.BytesIO(stored), height, width, channels, middle=self.middle)


def describe(name: str, data_dir: str | None, decoding: Decoding) -> DatasetInfo:
    """The facts of the set as TFDS keeps them; no record is read.

    Raises:
      UserError: one line: the set is not there, or in a format that needs TensorFlow; it has no
        images; they have no size of their own, and none is set.
    """
    folder = _folder(name, data_dir)
    features, splits = _features(folder)
    shape, own = features["image"].shape, decoding.size
    if not own:
        middle = _MIDDLE.get(name, 0)
        own = (middle, middle) if middle else shape[:2]
    if None in own:
        raise UserError(
            f"config.data.image_size = 0: the images of {name} have no common size; allowed are "
            "positive integers, tuples (height, width)"
        )
    channels = decoding.channels or (1 if shape[2] == 1 else 3)
    if channels not in (1, 3):
        raise UserError(f"config.data.channels = {channels}: allowed are 0 (their own), 1, 3")
    label = features.get("label")
    # Of its names and sizes: to read all records would take as long as an epoch.
    facts = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    content = json.dumps([name, facts.get("version"), facts.get("splits")], sort_keys=True)
    return DatasetInfo(
        f"{PREFIX}{name}",
        (*own, channels),
        256,
        getattr(label, "num_classes", None) or 0,
        {split: splits.get(there, 0) for split, there in _splits(splits).items()},
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )


def load(name: str, split: str, data_dir: str | None, decoding: Decoding) -> Arrays:
    """The `split`, as `score_sde.data.load` describes it; errors as of `describe`."""
    info = describe(name, data_dir, decoding)
    folder = _folder(name, data_dir)
    there = _splits(_features(folder)[1])[split]
    where, rows = f"config.data.dir: {folder}", np.arange(info.splits[split])
    middle = _MIDDLE.get(name, 0)
    records = _Records(folder, there, "image", info.shape, middle, where)
    x = Streamed(records, rows, info.shape, np.dtype(np.uint8))
    condition: dict[str, Any] = {}
    if info.num_classes:
        known = _Records(folder, there, "label", (), where=where)
        labels = Streamed(known, rows, (), np.dtype(np.int32))
        # Those of a large training split take as long as an epoch.
        far = decoding.stream and split == "train"
        condition["labels"] = labels if far else np.asarray(labels)
    if not decoding.stream:
        check_fits(x.nbytes, where)
        return Arrays(_decoded(x), condition)
    return Arrays(cast(Any, x), condition)


def _decoded(x: Streamed) -> np.ndarray:
    """All images; a bar where it takes long."""
    many = min(_AT_ONCE, at_once(math.prod(x.item)))
    parts = np.array_split(np.arange(len(x)), max(1, len(x) // many))
    found, pool = np.empty(x.shape, x.dtype), ThreadPoolExecutor()
    shown: dict[str, Any] = {"desc": "decoding", "total": len(parts), "delay": 1.0}

    def read(rows: np.ndarray) -> None:
        found[rows] = x[rows]

    try:
        for _ in bar(quiet=True, iterable=pool.map(read, parts), **shown):
            pass
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _folder(name: str, data_dir: str | None) -> Path:
    root = paths.local(data_dir, "config.data.dir") if data_dir else prepared.default_folder()
    try:
        found = prepared.find(root, name)
    except (OSError, ValueError, NotImplementedError):  # a folder or pattern that cannot be
        found = None
    if found is None:
        raise UserError(
            f"config.data.name = '{PREFIX}{name}': {root} has no {name}/VERSION/dataset_info.json; "
            "allowed are sets that TFDS has prepared there, by: "
            f"tfds build {name} --file_format=array_record --data_dir=FOLDER"
        )
    if obstacle := prepared.obstacle(found, name):
        raise UserError(obstacle)
    return found


def _features(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The features, and the number of items in each split."""
    import tensorflow_datasets as tfds

    where = f"config.data.dir: {folder}"
    try:
        info = tfds.builder_from_directory(folder).info
        splits = {name: split.num_examples for name, split in info.splits.items()}
        features = dict(info.features.items())
    except (AttributeError, *_DAMAGED) as error:
        reason = one_line(error)[:200]
        raise UserError(f"{where} is damaged or no set of images: {reason}") from error
    if not isinstance(features.get("image"), tfds.features.Image) or "train" not in splits:
        raise UserError(
            f"{where} has the features {', '.join(features)} and the splits {', '.join(splits)}; "
            "allowed are sets with a feature image and a split train"
        )
    return features, splits


def _splits(there: dict[str, int]) -> dict[str, str]:
    """TFDS's names of our splits."""
    return {"train": "train", "test": "test" if "test" in there else "validation"}
