"""CIFAR-10: 60,000 colour images of 32x32 in 10 classes, the official files.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html, whose two layouts are read: the binary version
(records of a label byte and 3072 pixel bytes: red, green, blue, each row by row) and the Python
version (pickled dicts of the same bytes).
"""

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from score_sde.data.download import PATIENCE, RemoteFile, download, verify
from score_sde.data.info import Arrays, DatasetInfo
from score_sde.data.pickles import read_batch
from score_sde.data.sources import load_in_order
from score_sde.errors import UserError

INFO = DatasetInfo("cifar10", (32, 32, 3), 256, 10, {"train": 50_000, "test": 10_000})

# Its published MD5 is c32a1d4ab5d03f1284b67883e8d87530; size and SHA-256 are as TFDS records them.
ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32  # bytes of an image
_PER_BATCH = 10_000  # images of an official file
BATCH_BYTES = _PER_BATCH * (1 + _PIXELS)
# The official pickles have 31.0 MB; a bound keeps an absurd file out of memory.
_PICKLE_LIMIT = 40_000_000
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_BINARY_FOLDER, _PICKLE_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"


def load(
    split: str,
    data_dir: str | None = None,
    *,
    archive: RemoteFile = ARCHIVE,
    patience: float = PATIENCE,
) -> Arrays:
    """CIFAR-10's `split`, as `score_sde.data.load` describes it.

    Args:
      split: "train" (50,000) or "test" (10,000).
      data_dir: where to look, and to download to; None or "" for the default.
      archive: the official archive, or a mirror.
      patience: seconds without an answer or progress after which the download gives up.
    """

    def read_files(folder: Path) -> Arrays | None:
        held = folder / archive.name
        if held.is_file() and _complete(folder, split) is None:
            verify(held, archive)
            unpack(held, folder)
        return read_batches(folder, split)

    def fetch(folder: Path) -> None:
        target = folder / archive.name
        download(archive, target, patience=patience)
        unpack(target, folder)
        target.unlink(missing_ok=True)  # 170 MB that the unpacked files repeat

    hint = f"{archive.name}, {_BINARY_FOLDER}/ or {_PICKLE_FOLDER}/ from {_PAGE}"
    return load_in_order(INFO, split, data_dir, read_files, fetch, hint)


def parse_binary(raw: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Whole records of the binary version as images uint8 (N, 32, 32, 3) and labels int32 (N,).

    Args:
      raw: the bytes of the file.
      source: the file's name, for messages.

    Raises:
      UserError: an incomplete record, or a label above 9.
    """
    if len(raw) % (1 + _PIXELS):
        raise UserError(
            f"config.data.dir: {source} has {len(raw)} bytes, "
            f"no whole number of records of {1 + _PIXELS}"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + _PIXELS)
    return _arrays(records[:, 1:], records[:, 0].astype(np.int32), source)


def parse_pickle(raw: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled batch of the Python version, as `parse_binary` gives it.

    Raises:
      UserError: a damaged or dangerous pickle, other shapes than (N, 3072), or a label not in 0…9.
    """
    data, labels = read_batch(raw, source)
    if data.shape[1] != _PIXELS:
        raise UserError(
            f"config.data.dir: {source} has images of {data.shape[1]} bytes, not {_PIXELS}"
        )
    # Labels are any whole numbers here: those beyond int32 must reach the check, not overflow.
    return _arrays(data, np.clip(np.array(labels, object), -1, 10).astype(np.int32), source)


def read_batches(folder: Path, split: str) -> Arrays | None:
    """The official batches of `split` in `folder` or its official subfolders; None if none is.

    Raises:
      UserError: a file missing among its fellows, of another size, or damaged.
    """
    paths = _complete(folder, split)
    if paths is None:
        for partial in _places(folder, split):
            missing = [path for path in partial if not path.is_file()]
            if len(missing) < len(partial):
                wanted = ", ".join(path.name for path in partial)
                raise UserError(
                    f"config.data.dir: {missing[0]} is missing; expected are all of {wanted}"
                )
        return None
    # One batch at a time into the whole: the transposed copies are never all in memory.
    images = np.empty((len(paths) * _PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty(len(paths) * _PER_BATCH, np.int32)
    for k, path in enumerate(paths):
        rows = slice(k * _PER_BATCH, (k + 1) * _PER_BATCH)
        images[rows], labels[rows] = _read_batch_file(path)
    return Arrays(images, {"labels": labels})


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the six batches of the official archive to `folder`/cifar-10-batches-bin.

    Only the members of the official names are read, as plain files of the official size, and
    written under names of ours. The paths, links and modes of an archive have no effect. No
    file appears before all six are there.

    Raises:
      UserError: a damaged archive, one without the six, or a folder that cannot be written.
    """
    wanted = [f"{name}.bin" for names in _BATCHES.values() for name in names]
    target = folder / _BINARY_FOLDER
    try:
        with tempfile.TemporaryDirectory(prefix=".unpack.", dir=folder) as scratch:
            with tarfile.open(archive, "r:gz") as members:
                for member in members:
                    name = member.name.removeprefix(f"{_BINARY_FOLDER}/")
                    content = members.extractfile(member) if member.isreg() else None
                    if name in wanted and member.size == BATCH_BYTES and content is not None:
                        with open(os.path.join(scratch, name), "wb") as file:
                            shutil.copyfileobj(content, file)
            missing = sorted(set(wanted) - set(os.listdir(scratch)))
            if missing:
                raise UserError(f"config.data.dir: {archive} lacks {', '.join(missing)}")
            target.mkdir(exist_ok=True)
            for name in wanted:
                os.replace(os.path.join(scratch, name), target / name)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"config.data.dir: {archive} is damaged: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"config.data.dir: cannot unpack {archive}: {reason}") from error


def _places(folder: Path, split: str) -> list[list[Path]]:
    """The official files of `split`, in each place and layout where they may lie."""
    layouts = [
        (folder / _BINARY_FOLDER, ".bin"),
        (folder, ".bin"),
        (folder / _PICKLE_FOLDER, ""),
        (folder, ""),
    ]
    return [[place / f"{name}{end}" for name in _BATCHES[split]] for place, end in layouts]


def _complete(folder: Path, split: str) -> list[Path] | None:
    """The official files of `split` in the first place that has them all."""
    return next((s for s in _places(folder, split) if all(p.is_file() for p in s)), None)


def _read_batch_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One official file, of 10,000 images."""
    binary = path.suffix == ".bin"
    size = path.stat().st_size
    if size != BATCH_BYTES if binary else size > _PICKLE_LIMIT:
        expected = f"the {BATCH_BYTES}" if binary else "the 31.0 million"
        raise UserError(
            f"config.data.dir: {path} has {size} bytes, not {expected} of the official file: "
            "it is damaged or incomplete"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"config.data.dir: cannot read {path}: {error.strerror}") from error
    images, labels = parse_binary(raw, str(path)) if binary else parse_pickle(raw, str(path))
    if len(labels) != _PER_BATCH:
        raise UserError(f"config.data.dir: {path} has {len(labels)} images, not {_PER_BATCH}")
    return images, labels


def _arrays(pixels: np.ndarray, labels: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072), channel by channel, as images NHWC; checks the labels (N,) int32."""
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise UserError(f"config.data.dir: {source} has a label that is not in 0 … 9")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
