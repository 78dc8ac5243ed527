"""Paths as users write them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from score_sde.errors import UserError

ALLOWED = "paths of this machine; mount a bucket, or copy its files"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # one letter is a drive


def local(text: str | os.PathLike[str], where: str) -> Path:
    """Return the path that a text names, with `~` or `~user` at its begin as a shell reads it.

    Raises:
        UserError: a URL, a home folder that the system does not know, or a path that cannot be
            looked at; it names `where`.
    """
    text = os.fspath(text)
    if is_url(text):
        raise UserError(f"{where} = {text!r}: allowed are {ALLOWED}")
    path = os.path.expanduser(text)
    if path.startswith("~"):  # as it was
        user = Path(path).parts[0]
        raise UserError(f"{where} = {text!r}: no home folder of {user}; set HOME, or write it out")
    try:
        os.stat(os.path.join(path, "."))  # which a folder refuses to those who may not search it
    except (FileNotFoundError, NotADirectoryError, ValueError):  # not there, a file, not a path
        pass
    except OSError as error:
        raise UserError(f"{where} = {text!r:.80}: cannot be read ({error.strerror})") from error
    return Path(path)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn the system's errors into a UserError: the path cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to. It takes this path's place when all is written. A missing folder is
    made.

    Raises:
        UserError: it cannot be written. The file that was there stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    with written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


def is_url(text: str) -> bool:
    """Return whether a text is a URL, such as that of a bucket."""
    return bool(_URL.match(text))


def cache(where: str) -> Path:
    """Return our folder in the user's caches, those of $XDG_CACHE_HOME or ~/.cache; errors as of
    `local`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return local(base if os.path.isabs(base) else "~/.cache", where) / "score_sde"
