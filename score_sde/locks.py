"""One writer for each kind of results in a folder, by a lock that ends with its process."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from score_sde.errors import UserError
from score_sde.paths import is_url, written

SUFFIX = ".lock"
# The answers of file systems without locks, such as NFS where its daemon does not run.
WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def writing(folder: Path, results: str) -> Iterator[None]:
    """Hold `RESULTS.lock` in a folder, which is made where it is missing. At the end the lock is
    removed, and so are folders that were made here and are empty.

    The operating system drops the lock when the process ends, however it ends: a file that is left
    over locks nothing. Where there are no locks, a line says so, and the work goes on.

    Args:
        folder: where the results go.
        results: their kind, a plural.

    Raises:
        UserError: another process holds the lock, and the line names it; or the file cannot be
            written.
    """
    if is_url(folder):
        _note(folder, "a bucket has no locks")
        yield
        return
    path = folder / f"{results}{SUFFIX}"
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    file = _taken(path, results)
    try:
        yield
    finally:
        with suppress(OSError):  # of a system where open files cannot go
            path.unlink()
        file.close()
        for each in made:
            with suppress(OSError):  # not empty
                each.rmdir()


def _taken(path: Path, results: str) -> TextIO:
    """The locked file, with the name of this process in it."""
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(100):  # whoever held it may have removed it before it was locked here
            with ExitStack() as stack:
                file = stack.enter_context(path.open("a+", encoding="utf-8", errors="replace"))
                _lock(file, path, results)
                if _is_at(file, path):
                    now = datetime.now().astimezone().isoformat(" ", "seconds")
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
                    file.flush()
                    stack.pop_all()
                    return file
    raise UserError(f"{path}: cannot be locked; other commands remove it again and again")


def _lock(file: TextIO, path: Path, results: str) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        file.seek(0)
        holder = " ".join(file.read(200).split()) or "another process"
        raise UserError(
            f"{path.parent}: its {results} are being written by {holder}; allowed is one command "
            "at a time for these, or another folder"
        ) from None
    except ImportError:
        reason = "this system has no flock"
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        reason = f"this file system has no locks ({error.strerror})"
    _note(path.parent, reason)


def _note(folder: Path, reason: str) -> None:
    print(f"note: {folder}: {reason}; let no other command write here", file=sys.stderr)


def _is_at(file: TextIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
