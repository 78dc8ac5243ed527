"""Errors that name a setting, its value and what is allowed."""

import struct
import zlib
from collections.abc import Iterable
from json import JSONDecodeError
from zipfile import BadZipFile

# What json, numpy, zipfile and Pillow raise, and what follows, where a file is damaged or of
# another program. Few statements belong between this `except` and its `try`.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    BadZipFile,
    zlib.error,
    struct.error,
)


class UserError(Exception):
    """A mistake of the user: one line that names the key or file, the value and what is allowed.

    `main.py` prints it and exits with status 2; everything else is a bug and keeps its traceback.

    Characters that cannot be printed are escaped, a line's end too: names may come from files.
    """

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError for the value of an object's setting, unless it is ok."""
    if not ok:
        raise ValueError(f"{name} = {value!r:.200}: allowed are {allowed}")


def besides(table: Iterable[str], *names: str) -> str:
    """The names of a table without these, as words."""
    return ", ".join(name for name in table if name not in names)


def one_line(error: BaseException) -> str:
    """The text of an error, without its line ends."""
    return " ".join(f"{error}".split())


def why_no_json(error: Exception) -> str:
    """The reason why a text is no JSON: where it breaks off, or of what kind it is."""
    if isinstance(error, JSONDecodeError):
        return one_line(error)
    return "nested too deeply" if isinstance(error, RecursionError) else "not text"


def printable(text: str) -> str:
    """The text with what cannot be printed escaped, such as a line's end in a file's name."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
