"""Files that are written whole or not at all, and whether what is in them is still the same."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jax.typing import ArrayLike

from score_sde.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes this path's place when all is written.

    Raises:
        UserError: it cannot be written; what was there before stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def digest(arrays: Iterable[ArrayLike]) -> str:
    """What tells these arrays from others."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
