"""A table of per-item results. It is saved as it fills, and the same command continues it."""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from score_sde import __version__
from score_sde.errors import DAMAGED, UserError
from score_sde.evaluation import Rows as Chunked
from score_sde.evaluation.rows import of_npz
from score_sde.paths import is_url, make, move_aside, whole, written

SAVE_EVERY = 60.0  # seconds, and at most a tenth of the time goes into saving
IN_MEMORY = 2**30  # bytes of an array; a larger one is in a file until it is saved
PACKAGES = ("jax", "jaxlib", "flax", "diffrax", "numpy", "pillow")
FOREIGN = "not as this version writes it"
Rows = dict[str, np.ndarray]


def circumstances() -> dict[str, Any]:
    """What numbers depend on beside settings: the devices and the versions."""
    versions = {"score_sde": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    devices = jax.devices()
    return {"device": devices[0].device_kind, "num_devices": len(devices), "versions": versions}


def check_room(path: Path, size: int) -> None:
    """Refuse what a table at a path could not hold: an array of so many bytes.

    Raises:
        UserError: one line: the disk is full.
    """
    if size > IN_MEMORY:
        with _reserved(path, size):
            pass


@contextmanager
def _reserved(path: Path, size: int) -> Iterator[Any]:
    """A file of so many bytes beside a path, without a name: it ends with who holds it."""
    folder = path.parent
    with written(path):
        make(folder)
        with tempfile.TemporaryFile(dir=None if is_url(folder) else folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            yield file


class Table:
    """The results of items 0, 1, ... of one mode in a file of numpy arrays (.npz).

    The file says what its numbers depend on. Rows of the same settings are continued. Rows of other
    settings move to NAME.old.npz with the files beside them, as soon as there are new rows; so do
    those files where they are alone. So no paid work is overwritten. Its `made_by` lists the
    `circumstances` in which its rows were computed.

    Args:
        path: of the file.
        depends: the settings that the numbers depend on; JSON.
        wanted: how many rows there will be.
        facts: further arrays of the file, for its readers.
        beside: names of the files and folders that belong to it.
        usual: the values of settings that an older file lacks.
        large: shape (without rows) and dtype of arrays that may outgrow the memory.

    Raises:
        UserError: there is no room for them on the disk.
    """

    def __init__(
        self,
        path: Path,
        depends: Mapping[str, Any],
        wanted: int,
        *,
        facts: Mapping[str, Any] | None = None,
        beside: Sequence[str] = (),
        usual: Mapping[str, Any] | None = None,
        large: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
    ) -> None:
        self.path, self.wanted, self.beside = path, wanted, beside
        self.depends: dict[str, Any] = json.loads(json.dumps(depends))  # tuples as lists, as read
        self.facts = dict(facts or {})
        self.rows: Rows = {}
        self._room: Rows = {}  # arrays whose first rows these are
        self._large = dict(large or {})
        self._made_by: list[dict[str, Any]] = []
        self.other = self._read(json.loads(json.dumps(dict(usual or {}))))
        if not self.rows:
            self._make_room(wanted)
        self._saved = len(self)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def _read(self, usual: dict[str, Any]) -> str | None:
        """Take the file's rows if they are of these settings; otherwise return the reason."""
        if not self.path.is_file():  # a folder of this name is an error of `save`
            beside = any(self.path.with_name(name).exists() for name in self.beside)
            return "missing" if beside and not self.path.exists() else None
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:
                theirs = json.loads(str(arrays["depends"]))
                made_by = json.loads(str(arrays["made_by"])) if "made_by" in arrays else []
                rows = {name: of_npz(self.path, name) for name in json.loads(str(arrays["rows"]))}
        except (UserError, *DAMAGED):  # or of another program
            return FOREIGN
        theirs = {key: usual[key] for key in self.depends if key in usual} | theirs
        keys = {**self.depends, **theirs}
        different = [key for key in keys if self.depends.get(key) != theirs.get(key)]
        if different:
            return f"of another {', '.join(different)}"
        self._make_room(max(self.wanted, *map(len, rows.values())))
        try:
            self.rows = {name: self._filled(name, found) for name, found in rows.items()}
        except (UserError, ValueError):  # damaged, or of another shape
            return FOREIGN
        self._made_by = made_by
        return None

    def _filled(self, name: str, found: Chunked) -> np.ndarray:
        """An array of the file, in the room that was made for it."""
        if name not in self._room:
            return found.array()
        end = 0
        for chunk in found:
            self._room[name][end : end + len(chunk)] = chunk
            end += len(chunk)
        return self._room[name][:end]

    def _make_room(self, number: int) -> None:
        """Make room for large arrays of so many rows: a file without a name where the table will
        be. The system keeps as much of it in memory as there is space for."""
        for name, (shape, dtype) in self._large.items():
            size = number * math.prod(shape) * np.dtype(dtype).itemsize
            if size > IN_MEMORY:
                with _reserved(self.path, size) as file:
                    self._room[name] = np.memmap(file, dtype, "r+", shape=(number, *shape))

    def report(self) -> None:
        """Print how many rows are there."""
        if len(self):
            then = "going on after them" if len(self) < self.wanted else "nothing to compute"
            if len(self) > self.wanted:
                then = f"the first {self.wanted} of them follow, and the file stays"
            print(f"{self.path}: {len(self)} items of these settings; {then}")

    def add(self, rows: Mapping[str, Any]) -> None:
        """Add the results of the next items, arrays (n, ...); None is left out."""
        new = {name: np.asarray(array) for name, array in rows.items() if array is not None}
        new = {name: new[name] for name in self.rows or new}  # an older file may have fewer
        begin, grown = len(self), {}
        for name, array in new.items():
            end, room = begin + len(array), self._room.get(name, array[:0])
            if len(room) < end:  # one copy in all; the system gives its memory as it is filled
                room = np.empty((max(end, self.wanted), *array.shape[1:]), array.dtype)
                room[:begin] = self.rows.get(name, array[:0])
            room[begin:end] = array
            grown[name], self._room[name] = room[:end], room
        self.rows = grown

    @property
    def changed(self) -> bool:
        """Whether there are rows that the file lacks."""
        return len(self) > self._saved

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.set_aside()
        here = circumstances()
        self._made_by += [here] if here not in self._made_by else []
        arrays: dict[str, Any] = {
            **self.rows,
            **self.facts,
            "rows": json.dumps(list(self.rows)),
            "depends": json.dumps(self.depends),
            "made_by": json.dumps(self._made_by),
            "complete": len(self) >= self.wanted,
        }
        with whole(self.path) as file:
            np.savez_compressed(file, **arrays)
        self._saved = len(self)

    def set_aside(self) -> None:
        """Move files of other settings out of the way, and report it."""
        if not self.other:
            return
        now = move_aside([self.path, *map(self.path.with_name, self.beside)])
        what = "it is" if self.path.name in now else "what lay beside it is"
        tqdm.write(f"{self.path}: {self.other}; {what} now {', '.join(now.values())}")
        self.other = None


class Progress:
    """A bar that counts items, and shows how much of a batch is done.

    Attributes:
        drawn: sizes of the batches done.
        ends: when they ended, seconds; the first is the begin.
    """

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.drawn: list[int] = []
        self.ends = [time.perf_counter()]
        self._shown = self.ends[0]

    def inside(self, share: float) -> None:
        """Show the share of the batch that is done, once a second at most."""
        now = time.perf_counter()
        if now > self._shown + 1.0:
            self.bar.set_postfix_str(f"batch {share:.0%}")
            self._shown = now

    def done(self, items: int, words: str = "") -> None:
        """Count the items of a batch."""
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(items)
        self.drawn.append(items)
        self.ends.append(time.perf_counter())

    def speed(self, unit: str) -> str:
        """Items per second in words."""
        words = f"{sum(self.drawn) / (self.ends[-1] - self.ends[0]):.2f} {unit}/s with compilation"
        if len(self.drawn) > 1:
            rate = sum(self.drawn[1:]) / (self.ends[-1] - self.ends[1])
            words += f", {rate:.2f} {unit}/s after the first batch"
        return words


@contextmanager
def progress(total: int, done: int, unit: str, desc: str) -> Iterator[Progress]:
    """Show a bar of the items to come."""
    with tqdm(total=total, initial=min(done, total), unit=unit, desc=desc) as bar:
        yield Progress(bar)


@contextmanager
def saving(changed: Callable[[], bool], save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each batch: it saves now and then. Save the rest at the end,
    and at an interruption."""
    due = time.perf_counter() + SAVE_EVERY

    def maybe() -> None:
        nonlocal due
        begin = time.perf_counter()
        if begin > due and changed():
            save()
            now = time.perf_counter()
            due = now + max(SAVE_EVERY, 10.0 * (now - begin))

    try:
        yield maybe
    finally:
        if changed():
            save()
