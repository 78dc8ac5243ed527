"""A folder of the user's own images; `score_sde.data.images` says how it is laid out."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from score_sde.data import images
from score_sde.data.decoding import CorruptImageError, decode, header
from score_sde.errors import UserError, one_line
from score_sde.paths import local


def listing(data_dir: str | None) -> images.Listing:
    """The files in the folder and in those within, by name; links to folders are not followed.

    Raises:
      UserError: there is no such folder, or it cannot be read.
    """
    root = local(data_dir or "", "config.data.dir")
    if not data_dir or not root.is_dir():
        raise UserError(
            f"config.data.dir = {data_dir!r}: allowed is the path of a folder of images"
        )
    where = f"config.data.dir: {root}"
    try:
        files = tuple(sorted(_files(root)))
    except OSError as error:
        raise UserError(f"{where}: cannot read {error.filename} ({error.strerror})") from error

    return images.Listing(
        "folder", where, files, partial(_opened, root), partial(listing, data_dir)
    )


@contextmanager
def _opened(root: Path) -> Iterator[images.Open]:
    yield lambda name: (root / name).open("rb")


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time of change of each regular file."""

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(root, onerror=refuse):
        for name in names:
            path = Path(place, name)
            found = path.stat()
            if stat.S_ISREG(found.st_mode):
                yield path.relative_to(root).as_posix(), found.st_size, found.st_mtime_ns


def of_one_size(path: Path) -> tuple[tuple[int, ...], Callable[[int], Iterator[np.ndarray]]]:
    """The images right in a folder, in the order of their names, decoded as `images` decodes them.
    Hidden files are left out.

    Returns:
      (N, H, W, C), C 1 where all are grey, else 3, and a function that reads so many at a
      time: it yields arrays uint8 (n, H, W, C), and raises as below.

    Raises:
      UserError: one line: the folder cannot be read, or a file is no image or of another size.
    """
    try:
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name[:1] != "."]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not files:
        return (0, 0, 0, 3), lambda at_a_time: iter(())
    found = [_checked(file, header) for file in files]
    size = found[0][:2]
    for file, (height, width, _) in zip(files, found, strict=True):
        if (height, width) != size:
            raise UserError(f"{file}: is {(height, width)}; allowed is the first one's {size}")
    shape = (*size, 1 if all(grey for *_, grey in found) else 3)

    def read(at_a_time: int) -> Iterator[np.ndarray]:
        for begin in range(0, len(files), at_a_time):
            part = files[begin : begin + at_a_time]
            yield np.stack([_checked(file, lambda opened: decode(opened, *shape)) for file in part])

    return (len(files), *shape), read


def _checked(file: Path, read: Callable[[BinaryIO], Any]) -> Any:
    """What is read of an image, or the UserError of a file that is none."""
    try:
        with file.open("rb") as opened:
            return read(opened)
    except (OSError, CorruptImageError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)[:100]
        raise UserError(f"{file}: no image ({reason})") from error
