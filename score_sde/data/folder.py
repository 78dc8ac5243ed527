"""A folder of the user's own images; `score_sde.data.images` says how it is laid out."""

import os
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from score_sde.data import images
from score_sde.errors import UserError
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

    def open_file(name: str):  # type: ignore[no-untyped-def]
        return (root / name).open("rb")

    return images.Listing(
        "folder", where, files, lambda: nullcontext(open_file), partial(listing, data_dir)
    )


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
