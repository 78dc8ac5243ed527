"""A zip archive of the user's own images, which is read as it is.

`score_sde.data.images` says how it is laid out.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from score_sde.data import images
from score_sde.data.info import file_of
from score_sde.errors import UserError, one_line


def listing(data_dir: str | None) -> images.Listing:
    """The files in the archive, by name.

    Raises:
      UserError: there is no such file, it is no zip archive, or it has encrypted files, two of one
        name, or paths that leave it.
    """
    path = file_of(data_dir, "a .zip file of images")
    where = f"config.data.dir: {path}"

    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{where}: not a zip archive ({one_line(error)[:100]})") from error
    for member in members:
        name = member.filename
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise UserError(f"{where}: its file {name!r:.100} leaves it; allowed are paths within")
        if member.flag_bits & 1:
            raise UserError(f"{where}: {name!r:.100} is encrypted; allowed are archives without")
    found = _by_name(members)
    files = tuple(sorted((name, m.file_size, m.CRC) for name, m in found.items()))
    if len(found) < len(members):
        raise UserError(f"{where}: has files of one name; allowed are different ones")
    return images.Listing("zip", where, files, partial(_opened, path), partial(listing, data_dir))


@contextmanager
def _opened(path: Path) -> Iterator[images.Open]:
    with zipfile.ZipFile(path) as archive:
        found = _by_name(archive.infolist())
        # zipfile's own type is IO[bytes], of which mypy does not know that it is a BinaryIO.
        yield lambda name: archive.open(found[name])  # type: ignore[misc,return-value]


def _by_name(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The members by their paths. Some programs write "./a.png" or "cats\\a.png"; the member keeps
    the name that opens it."""
    return {str(PurePosixPath(member.filename.replace("\\", "/"))): member for member in members}
