"""What is known of each image set before it is read, and the form in which it is handed over."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from score_sde.errors import UserError


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of an image set: square images of `image_size` pixels with values 0 … levels - 1."""

    name: str
    image_size: int  # pixels, height and width
    channels: int
    levels: int  # grey values per channel; enters the bits/dim
    num_classes: int
    splits: Mapping[str, int]  # images in each split
    readable: bool = True  # False: known for its models, and not read by this package

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.image_size, self.image_size, self.channels

    def resized(self, image_size: int) -> "DatasetInfo":
        """The same set at another image size; 0 is its own.

        Raises:
          ValueError: another size than its own for a set that is read.
        """
        if self.readable and image_size not in (0, self.image_size):
            raise ValueError(
                f"image_size = {image_size}: allowed are 0 (its own {self.image_size} pixels) for "
                f"{self.name}"
            )
        return dataclasses.replace(self, image_size=image_size or self.image_size)


class Arrays(NamedTuple):
    """A split in memory: images uint8 (N, H, W, C), labels int32 (N,)."""

    images: np.ndarray
    labels: np.ndarray


def _described(name: str, image_size: int, train: int, test: int) -> DatasetInfo:
    """A set of colour photographs without classes that the published models were trained on."""
    return DatasetInfo(name, image_size, 3, 256, 0, {"train": train, "test": test}, readable=False)


# Sizes are those of the published models' images, where the set has none of its own (LSUN) or
# other ones (CelebA). LSUN has a validation set only to test on, CelebA-HQ and FFHQ have none.
INFO: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("digits", 8, 1, 17, 10, {"train": 1500, "test": 297}),
    "cifar10": DatasetInfo("cifar10", 32, 3, 256, 10, {"train": 50_000, "test": 10_000}),
    "fashion_mnist": DatasetInfo(
        "fashion_mnist", 28, 1, 256, 10, {"train": 60_000, "test": 10_000}
    ),
    "celeba": _described("celeba", 64, 162_770, 19_962),
    "lsun_bedroom": _described("lsun_bedroom", 256, 3_033_042, 300),
    "lsun_church": _described("lsun_church", 256, 126_227, 300),
    "celebahq": _described("celebahq", 1024, 30_000, 0),
    "ffhq": _described("ffhq", 1024, 70_000, 0),
}


def check(arrays: Arrays, info: DatasetInfo, split: str) -> None:
    """Holds a split against its `info`: number of images, shape, dtypes and ranges.

    Raises:
      UserError: one line that names the first thing that does not fit.
    """
    images, labels = arrays
    count = info.splits[split]
    where = f"config.data.name: the {split} split of {info.name}"
    if images.shape != (count, *info.shape) or images.dtype != np.uint8:
        expected = (count, *info.shape)
        raise UserError(f"{where} is {images.dtype}{images.shape}, expected uint8{expected}")
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise UserError(
            f"{where} has labels {labels.dtype}{labels.shape}, expected int32({count},)"
        )
    if images.max() >= info.levels:
        raise UserError(f"{where} has pixel {images.max()}, allowed are 0 to {info.levels - 1}")
    if labels.min() < 0 or labels.max() >= info.num_classes:
        raise UserError(
            f"{where} has labels {labels.min()} to {labels.max()}, "
            f"allowed are 0 to {info.num_classes - 1}"
        )
