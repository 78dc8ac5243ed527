"""Fashion-MNIST: 70,000 grey images of 28x28 in 10 classes, the official IDX files.

H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms, 2017, https://github.com/zalandoresearch/fashion-mnist.

IDX, MNIST's format: two zero bytes, a type (8: unsigned bytes), the number of dimensions, each
dimension as a big-endian 32-bit number, then the data.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from score_sde.data.download import PATIENCE, RemoteFile, download
from score_sde.data.info import Arrays, DatasetInfo, check_fits
from score_sde.data.sources import load_in_order
from score_sde.data.streamed import fill
from score_sde.errors import UserError

INFO = DatasetInfo("fashion_mnist", (28, 28, 1), 256, 10, {"train": 60_000, "test": 10_000})

_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Sizes and SHA-256 as TFDS records them; the MD5 sums that the authors publish are, in this order,
# 8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe,
# bef4ecab320f06d8554ea6380940ec79, bb300cfdad3c16e7a12a480ee83cd310 (the same files have both).
FILES = {
    "train": (
        RemoteFile(
            f"{_ADDRESS}train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        RemoteFile(
            f"{_ADDRESS}train-labels-idx1-ubyte.gz",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
    ),
    "test": (
        RemoteFile(
            f"{_ADDRESS}t10k-images-idx3-ubyte.gz",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        RemoteFile(
            f"{_ADDRESS}t10k-labels-idx1-ubyte.gz",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}
# Where torchvision puts them, within the folder that it is given.
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")
# Of Debian's package dataset-fashion-mnist: the same data, its gzip headers without name and time.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load(
    split: str,
    data_dir: str | None = None,
    *,
    files: tuple[RemoteFile, RemoteFile] | None = None,
    system_folder: Path = DEBIAN_FOLDER,
    patience: float = PATIENCE,
) -> Arrays:
    """Fashion-MNIST's `split`, as `score_sde.data.load` describes it.

    Args:
      split: "train" (60,000) or "test" (10,000).
      data_dir: where to look, and to download to; None or "" for the default.
      files: images and labels of the split to download: the official ones, or a mirror's.
      system_folder: where the system's package has the files; looked at after `data_dir`.
      patience: seconds without an answer or progress after which a download gives up.
    """
    images, labels = files or FILES[split]

    def read_files(folder: Path) -> Arrays | None:
        for place in (folder, folder / TORCHVISION_FOLDER, system_folder):
            arrays = _read_pair(place, images.name, labels.name, INFO.splits[split])
            if arrays is not None:
                return arrays
        return None

    def fetch(folder: Path) -> None:
        for remote in (images, labels):
            if find(folder, remote.name) is None:
                download(remote, folder / remote.name, patience=patience)

    hint = (
        f"{images.name} and {labels.name} (packed or not) from {_ADDRESS}, or install Debian's "
        "package dataset-fashion-mnist"
    )
    return load_in_order(INFO, split, data_dir, read_files, fetch, hint)


def parse_idx(file: BinaryIO, source: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The array of unsigned bytes in an open IDX file, uint8.

    Args:
      file: at its beginning.
      source: what errors call it.
      shape: that it must have; None: the one that it says, if it fits into memory.

    Raises:
      UserError: another type of data or shape, or another length than the header says.
    """
    head = file.read(4)
    dimensions = head[3] if head[:3] == b"\x00\x00\x08" and len(head) > 3 else 0
    sides = file.read(4 * dimensions)
    if not 1 <= dimensions <= 3 or len(sides) < 4 * dimensions:
        raise UserError(f"config.data.dir: {source} is not an IDX file of unsigned bytes")
    found = tuple(np.frombuffer(sides, ">u4").tolist())
    if shape not in (None, found):
        raise UserError(f"config.data.dir: {source} has shape {found}, expected {shape}")
    check_fits(math.prod(found), f"config.data.dir: {source}")
    array = np.empty(math.prod(found), np.uint8)
    got = fill(file, array.data) + len(file.read(1))
    if got != len(array):
        more = "more" if got > len(array) else f"{got}"
        raise UserError(
            f"config.data.dir: {source} has {more} bytes of IDX data, not the {len(array)} its "
            f"header says (shape {found}): it is damaged or incomplete"
        )
    return array.reshape(found)


def find(folder: Path, name: str) -> Path | None:
    """The file `name`.gz in `folder`, or the unpacked one."""
    candidates = (folder / name, folder / name.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_pair(folder: Path, images_name: str, labels_name: str, count: int) -> Arrays | None:
    """Images and labels in `folder`; None unless both are there (one alone is fetched)."""
    images_path, labels_path = find(folder, images_name), find(folder, labels_name)
    if images_path is None or labels_path is None:
        return None
    images = read_idx_file(images_path, (count, 28, 28))
    labels = read_idx_file(labels_path, (count,))
    if labels.max() > 9:
        raise UserError(f"config.data.dir: {labels_path} has a label that is not in 0 … 9")
    return Arrays(images[..., np.newaxis], {"labels": labels.astype(np.int32)})


def read_idx_file(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An IDX file, packed or not, uint8; of the given shape, or of any that fits into memory.

    Raises:
      UserError: a file that is damaged or cannot be read, or of another shape.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return parse_idx(cast(BinaryIO, file), str(path), shape)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"config.data.dir: {path} is damaged or unreadable: {error}") from error
