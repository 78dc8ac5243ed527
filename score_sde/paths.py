"""Paths as users write them, and files that are written whole."""

import io
import itertools
import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache as once
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from score_sde.errors import UserError, one_line

ALLOWED = "paths of this machine; mount a bucket, or copy its files"
# One letter is a drive. With one slash, as of a pathlib.Path, it is no folder "gs:" either.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(gs|s3):/")
BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # schemes of URLs, and the packages that open them
# Packages whose errors say that a bucket cannot be reached. Most of theirs are OSErrors.
_CLIENTS = ("aiohttp", "botocore", "gcsfs", "google")


def place(text: str | os.PathLike[str], where: str, *, checkpoints: bool = False) -> Path:
    """Return the path that a text names, of this machine as `local`, or in a bucket.

    Args:
        text: a path, or a URL `gs://BUCKET/...` or `s3://BUCKET/...`.
        where: the setting that has it.
        checkpoints: whether it is a workdir: Orbax keeps no checkpoints at `s3://`.

    Returns:
        a `pathlib.Path`, or for a URL etils' `epath.Path`, which has its methods.

    Raises:
        UserError: as `local`; another URL; the extra `remote` is not installed; there is no such
            bucket, or it cannot be read.
    """
    text = os.fspath(text)
    if not is_url(text):
        return local(text, where)
    scheme, mistake = text.partition("://")[0], f"{where} = {text!r:.80}"
    if scheme not in BUCKETS or (checkpoints and scheme == "s3"):
        urls = "gs://, as Orbax keeps no checkpoints elsewhere" if checkpoints else "gs://, s3://"
        raise UserError(f"{mistake}: allowed are paths of this machine, and {urls}")
    if find_spec(BUCKETS[scheme]) is None:
        raise UserError(f"{mistake}: {scheme}:// needs an extra, pip install 'score-sde[remote]'")
    import fsspec
    from etils import epath

    # Otherwise etils opens it by a TensorFlow that happens to be there, after seconds of import.
    os.environ.setdefault("EPATH_USE_TF", "false")
    for name in ("gcsfs", "google.auth"):  # they log the errors that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # TensorStore, and other commands, write there too: a listing that is kept would be out of date.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    path = epath.Path(text)
    try:
        found = len(path.parts) > 2 and epath.Path(*path.parts[:3]).exists()
    except Exception as error:  # of credentials or of the network; each package has its own
        raise UserError(f"{mistake}: cannot be read ({one_line(error):.200})") from error
    if not found:
        raise UserError(f"{mistake}: no such bucket, or none that can be read")
    return path


def local(text: str | os.PathLike[str], where: str) -> Path:
    """Return the path that a text names, with `~` or `~user` at its begin as a shell reads it.

    Raises:
        UserError: a URL, a home folder that the system does not know, a path that cannot be looked
            at, or a pipe or device, whose reader may wait for ever; it names `where`.
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
    found = Path(path)
    if found.exists() and not (found.is_file() or found.is_dir()):
        raise UserError(f"{where} = {text!r:.80}: a pipe or device; allowed are files and folders")
    return found


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn the system's errors into a UserError: the path cannot be written."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        reason = getattr(error, "strerror", None) or f"{one_line(error):.200}"
        raise UserError(f"{path}: cannot be written ({reason})") from error


@contextmanager
def whole(path: Path, *, keep: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to. It takes this path's place when all is written. A missing folder is
    made. Of several writers at a time each has its own partial file, and the last one's stays.

    Args:
        path: of the file.
        keep: one of other content that is there moves out of the way, and this is printed.

    Raises:
        UserError: it cannot be written. The file that was there stays.
    """
    with written(path):
        if is_url(path):
            # An object is there whole or not at all: no rename. But closing makes one of what was
            # written before an error, so nothing is opened until all is there.
            buffer = io.BytesIO()
            yield buffer
            if keep:
                _keep_other(path, buffer.getvalue())
            path.write_bytes(buffer.getvalue())
            return
        own = f"{os.getpid()}-{secrets.token_hex(2)}-{socket.gethostname()}"
        partial = path.with_name(f"{path.name}.{own}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_partial(path.parent.absolute())
            with partial.open("wb") as file:
                yield file
            if keep:
                _keep_other(path, partial.read_bytes())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


def write_json(path: Path, document: Any) -> None:
    """Write a document of JSON, as `whole` does."""
    with whole(path) as file:
        file.write(f"{json.dumps(document, indent=2)}\n".encode())


def _keep_other(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() != content:
        move_aside([path], "another one was there")


@once
def _remove_partial(folder: Path) -> None:
    """Remove the partial files of this machine's processes that were killed, once in a process."""
    for path in folder.glob("*.partial"):
        found = re.search(r"\.(\d+)-[0-9a-f]{4}-(.+)\.partial$", path.name)
        if found and found[2] == socket.gethostname() and not _runs(int(found[1])):
            with suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether there is a process of this number."""
    if os.name != "posix":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def make(folder: Path) -> None:
    """Make a folder where it is missing. A bucket has none, and mkdir would make the bucket."""
    if not is_url(folder):
        folder.mkdir(parents=True, exist_ok=True)


def absolute(path: Path) -> Path:
    """Return the path from the root on; etils takes a URL for a relative path."""
    return path if is_url(path) else path.absolute()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a text or path is a URL, such as that of a bucket."""
    return bool(_URL.match(os.fspath(path)))


def cache(where: str, instead: str) -> Path:
    """Return our folder in the user's caches, those of $XDG_CACHE_HOME or ~/.cache.

    Raises:
        UserError: as of `local`, or there is no home folder; it names `where`, and what the user
            can do `instead`.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification has relative paths ignored
        base = os.path.expanduser("~/.cache")
        if base.startswith("~"):
            allowed = f"set HOME, or XDG_CACHE_HOME to a folder from the root on, or {instead}"
            raise UserError(f"{where}: there is no home folder for a cache; {allowed}")
    return local(base, f"{where}: XDG_CACHE_HOME") / "score_sde"


def move_aside(paths: Sequence[Path], why: str = "") -> dict[str, str]:
    """Rename those files and folders of one place that are there to NAME.old.SUFFIX, or .old2 and
    so on where one of these is taken; return {old name: new name}. A reason is printed with them.

    Raises:
        UserError: one cannot be moved.
    """
    number = next(
        number
        for number in itertools.chain([""], map(str, itertools.count(2)))
        if not any(_taken(_older(path, number)) for path in paths)
    )
    moved = [(path, _older(path, number)) for path in paths if path.exists()]
    for path, older in reversed(moved):  # the first last: a kill leaves nothing to be replaced
        try:
            _move(path, older)
        except OSError as error:
            raise UserError(f"{path}: cannot be moved ({error.strerror or error})") from error
    if why:
        for path, older in moved:
            print(f"{path}: {why}; it is now {older.name}")
    return {path.name: older.name for path, older in moved}


def _move(path: Path, to: Path) -> None:
    if not is_url(path):
        path.replace(to)
    elif path.is_dir():  # s3fs moves none
        for each in path.iterdir():
            _move(each, to / each.name)
    else:  # etils asks for the folder that it goes into, and a bucket has none
        import fsspec

        system, _ = fsspec.url_to_fs(os.fspath(path))
        system.mv(os.fspath(path), os.fspath(to))


def _taken(path: Path) -> bool:
    return path.exists() or os.path.lexists(path)  # a link to nothing, too


def _older(path: Path, number: str) -> Path:
    return path.with_name(f"{path.stem}.old{number}{path.suffix}")
