"""The user's own images in IDX, MNIST's format: a folder with its four files, packed or not.

    train-images-idx3-ubyte, train-labels-idx1-ubyte    the training split
    t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte      the test split

MNIST, KMNIST and others of its kind are such folders.
"""

import hashlib

import numpy as np

from score_sde.data.fashion_mnist import find, read_idx_file
from score_sde.data.info import Arrays, DatasetInfo
from score_sde.errors import UserError
from score_sde.paths import local

_NAMES = {"train": "train", "test": "t10k"}


def describe(data_dir: str | None) -> DatasetInfo:
    """The files' shapes and classes; errors as of `load`."""
    content, splits, shapes, classes = hashlib.sha256(), {}, [], 0
    for split in _NAMES:
        arrays = load(split, data_dir)
        splits[split] = len(arrays.x)
        shapes.append(arrays.x.shape[1:])
        classes = max(classes, int(arrays.condition["labels"].max()) + 1)
        for array in (arrays.x, arrays.condition["labels"]):
            content.update(array.data)
    if shapes[0] != shapes[1]:
        raise UserError(
            f"config.data.dir: {data_dir}: its test images are {shapes[1]}, the training ones "
            f"{shapes[0]}; allowed is one shape"
        )
    return DatasetInfo("idx", shapes[0], 256, classes, splits, digest=content.hexdigest())


def load(split: str, data_dir: str | None = None) -> Arrays:
    """The folder's `split`, as `score_sde.data.load` describes it.

    Args:
      split: "train" or "test".
      data_dir: path of the folder.

    Raises:
      UserError: one line: a file that is missing or damaged, or of another number than its pair.
    """
    folder = local(data_dir or "", "config.data.dir")
    read = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        name = f"{_NAMES[split]}-{kind}-idx{dimensions}-ubyte.gz"
        path = find(folder, name) if data_dir else None
        if path is None:
            raise UserError(
                f"config.data.dir = {data_dir!r}: has no {name.removesuffix('.gz')}; allowed is a "
                "folder with MNIST's four files, packed or not"
            )
        array = read_idx_file(path)
        if array.ndim != dimensions or 0 in array.shape:
            raise UserError(
                f"config.data.dir: {path} has shape {array.shape}; allowed are {dimensions} "
                "dimensions above 0"
            )
        read.append(array)
    images, labels = read
    if len(images) != len(labels):
        raise UserError(
            f"config.data.dir: {folder} has {len(images)} {split} images and {len(labels)} labels"
        )
    return Arrays(images[..., np.newaxis], {"labels": labels.astype(np.int32)})
