"""A folder of the user's own images; `score_sde.data.images` says how it is laid out."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

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
    def open_file(name: str) -> BinaryIO:
        return (root / name).open("rb")

    yield open_file


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


def of_one_size(path: Path) -> np.ndarray:
    """The images right in a folder, in the order of their names, decoded as `images` decodes them:
    uint8 (N, H, W, 3). Hidden files are left out.

    Raises:
      UserError: one line: the folder cannot be read, or a file is no image or of another size.
    """
    found: list[np.ndarray] = []
    try:
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for file in files:
        if file.name.startswith("."):
            continue
        try:
            with file.open("rb") as opened:
                height, width, _ = header(opened)
                opened.seek(0)
                found.append(decode(opened, height, width, 3))
        except (OSError, CorruptImageError) as error:
            raise UserError(f"{file}: no image ({one_line(error)[:100]})") from error
        if found[-1].shape != found[0].shape:
            raise UserError(
                f"{file}: is {found[-1].shape[:2]}; allowed is the first one's {found[0].shape[:2]}"
            )
    return np.stack(found) if found else np.zeros((0, 0, 0, 3), np.uint8)
