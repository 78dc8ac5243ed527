"""Files of images as a data set, wherever the files lie.

Folders within say what the images are:

    train/ and test/   the two splits; without them a tenth of the images is held out, always the
                       same for the same names
    two or more        classes, in the order of their names

A folder that holds nothing but one folder is entered. Files that are no images by their names, and
hidden ones, are left out.
"""

import hashlib
import itertools
import math
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from score_sde.data.decoding import SUFFIXES, CorruptImageError, decode, header
from score_sde.data.info import (
    Arrays,
    DatasetInfo,
    Decoding,
    check_fits,
    held_out,
    is_large,
    taken,
)
from score_sde.data.streamed import Streamed, gone
from score_sde.errors import UserError, one_line, printable
from score_sde.progress import bar

_FEWEST = 10  # images, so that a tenth is one
_SHOWN = 10  # corrupt files in a line
_MOST_BYTES = 2**28  # of a file
_SPLITS = ("train", "test")
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 4096  # files that wait for a thread
# Of files of more bytes one is read at a time: a decoder may hold them, such as a whole WebP.
_LARGE, _large = 2**24, threading.Lock()
# What a zip archive raises for a damaged member.
_DAMAGED = (BadZipFile, ZlibError, EOFError, NotImplementedError, RuntimeError)
Open = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class Listing:
    """Files that may be images. Two are equal where nothing has changed between them.

    Attributes:
        name: of the set.
        where: what errors begin with: the key, and the folder or file.
        files: name with `/` between folders, bytes, and what changes with the content; by name.
        opened: gives the function that opens one of the files by its name. It can be pickled.
        again: lists the files anew.
    """

    name: str
    where: str
    files: tuple[tuple[str, int, int], ...]
    opened: Callable[[], AbstractContextManager[Open]] = field(compare=False)
    again: Callable[[], "Listing"] = field(compare=False)


class _Files:
    """Reads the images of some rows of a list of files, as they were when the list was made.

    Args:
        listing: the files.
        names: those of the list.
        digests: uint8 (N, 32), of their contents.
        shape: of each image.
    """

    def __init__(
        self,
        listing: Listing,
        names: Sequence[str],
        digests: np.ndarray,
        shape: tuple[int, int, int],
    ):
        self._where, self._opened, self._shape = listing.where, listing.opened, shape
        # Arrays: millions of Python's objects would take more memory than small images.
        self._names = np.array([os.fsencode(name) for name in names])
        self.digests = np.ascontiguousarray(digests[:, :8]).view("V8")[:, 0]
        self._open: tuple[ExitStack, Open] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self._shape), np.uint8)
        for image, row in zip(found, rows.tolist(), strict=True):
            name = os.fsdecode(self._names[row])
            where = f"{self._where}: {name}"
            try:
                with self._opener()(name) as file:
                    content = hashlib.file_digest(cast(Any, file), "sha256").digest()
                    if content[:8] != self.digests[row].tobytes():
                        raise UserError(f"{where}: has changed since the start")
                    file.seek(0)
                    image[...] = decode(file, *self._shape)
            except OSError as error:
                raise gone(where, error.strerror or one_line(error)) from error
            except (CorruptImageError, KeyError, ValueError, *_DAMAGED) as error:
                raise gone(where, one_line(error)[:100]) from error
        return found

    def _opener(self) -> Open:
        """Opens files by their names; an archive is opened once and stays so."""
        if self._open is None:
            stack = ExitStack()
            self._open = stack, stack.enter_context(self._opened())
        return self._open[1]


class _Images(NamedTuple):
    """All images of a set, the training split first."""

    x: np.ndarray | Streamed
    labels: np.ndarray
    info: DatasetInfo


def describe(listing: Listing, decoding: Decoding) -> DatasetInfo:
    """The facts of the files. All are decoded once; where they are not to be streamed, the images
    are kept until other files are read.

    Args:
      listing: the files.
      decoding: the size and channels that all images get. Unset, they are those that all images
        have, and red, green and blue unless all are grey.

    Raises:
      UserError: one line: no or too few images, folders that say nothing clear, images of several
        sizes where none is set, files that cannot be read, that are corrupt or that change.
    """
    return _read(listing, decoding).info


def load(listing: Listing, decoding: Decoding, split: str) -> Arrays:
    """The `split`, as `score_sde.data.load` describes it; arguments and errors as of `describe`."""
    x, labels, info = _read(listing, decoding)
    train = info.splits["train"]
    rows = slice(0, train) if split == "train" else slice(train, None)
    part = x.part(rows) if isinstance(x, Streamed) else x[rows]
    return Arrays(cast(Any, part), {"labels": labels[rows]} if info.num_classes else {})


def headers(listing: Listing) -> list[tuple[int, int, bool]]:
    """Height, width and greyness of each image that has a header.

    Raises:
      UserError: a file that cannot be read.
    """
    names = [name for names in _layout(listing)[0].values() for name in names]
    bytes_of = {name: size for name, size, _ in listing.files}

    def read(name: str, open_file: Open) -> tuple[int, int, bool] | None:
        if not 0 < bytes_of[name] <= _MOST_BYTES:
            return None
        try:
            with _alone(bytes_of[name]), open_file(name) as file:
                return header(file)
        except (CorruptImageError, *_DAMAGED):
            return None

    return list(filter(None, _in_threads(read, names, listing, "sizes")))


def _alone(size: int) -> AbstractContextManager[Any]:
    """What is held while a file of so many bytes is read."""
    return _large if size > _LARGE else nullcontext()


_kept: dict[bytes, _Images] = {}  # at most one


def _read(listing: Listing, decoding: Decoding) -> _Images:
    """All images of the files, decoded now or to be streamed; those of the last call are kept."""
    shape, number = _shape(listing, decoding), sum(_is_image(name) for name, *_ in listing.files)
    stream = is_large(number * math.prod(shape)) if decoding.stream is None else decoding.stream
    # By its digest: the list of many files takes as much memory as small images.
    key = (listing.where, listing.files, shape, decoding.skip_corrupt, stream)
    digest = hashlib.sha256(repr(key).encode()).digest()
    if digest not in _kept:
        _kept.clear()
        _kept[digest] = _decoded(listing, shape, decoding.skip_corrupt, stream)
    return _kept[digest]


def _decoded(
    listing: Listing, shape: tuple[int, int, int], skip_corrupt: bool, stream: bool
) -> _Images:
    splits, classes, labels = _layout(listing)
    names = [name for split in _SPLITS for name in splits[split]]
    if not stream:
        check_fits(len(names) * math.prod(shape), listing.where)
    x: Any = None if stream else np.empty((len(names), *shape), np.uint8)
    digests, reasons = _contents(listing, names, shape, x)
    corrupt = {names[row]: reasons[row] for row in sorted(reasons, key=names.__getitem__)}
    _tell(listing, corrupt, len(names), skip_corrupt)
    content = hashlib.sha256()
    for row in sorted(range(len(names)), key=names.__getitem__):
        was_read = digests[row].any()  # else its size was enough
        digest = digests[row].tobytes() if was_read else b""
        content.update(os.fsencode(names[row]) + b"\0" + digest)
    good = {split: [name for name in splits[split] if name not in corrupt] for split in _SPLITS}
    counts = {split: len(good[split]) for split in _SPLITS}
    if not all(counts.values()):
        raise UserError(f"{listing.where}: no image is left in the split train or test")
    info = DatasetInfo(
        listing.name,
        shape,
        256,
        len(classes),
        counts,
        classes=tuple(map(printable, classes)),
        digest=content.hexdigest(),
        skipped=tuple(
            printable(line)
            for line in (*_left_out(listing), *(f"{name}: {why}" for name, why in corrupt.items()))
        ),
    )
    order = [name for split in _SPLITS for name in good[split]]
    known = np.asarray([labels.get(name, 0) for name in order], np.int32)
    rows = np.flatnonzero([name not in corrupt for name in names])
    if x is None:
        files = _Files(listing, order, digests[rows], shape)
        x = Streamed(files, np.arange(len(rows)), shape, np.dtype(np.uint8), files.digests)
        return _Images(x, known, info)
    if corrupt:
        x = taken(x, rows)
    x.setflags(write=False)  # it is kept for the next call
    return _Images(x, known, info)


def _contents(
    listing: Listing, names: Sequence[str], shape: tuple[int, int, int], x: np.ndarray | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes all files, into the rows of x; the digest of each one's content, uint8 (N, 32), and
    what is wrong with those that are corrupt, by their rows."""
    bytes_of = {name: size for name, size, _ in listing.files}
    digests = np.zeros((len(names), 32), np.uint8)

    def read(row: int, open_file: Open) -> str:
        name, content, reason = names[row], hashlib.sha256(), ""
        if not 0 < bytes_of[name] <= _MOST_BYTES:
            return f"{bytes_of[name]:,} bytes; allowed are 1 to {_MOST_BYTES:,}"
        try:
            with _alone(bytes_of[name]), open_file(name) as file:
                while part := file.read(2**20):
                    content.update(part)
                file.seek(0)
                image = decode(file, *shape)
                if x is not None:
                    x[row] = image
        except (CorruptImageError, *_DAMAGED) as error:
            reason = one_line(error)[:100]
        digests[row] = np.frombuffer(content.digest(), np.uint8)
        return reason

    what = "checking" if x is None else "decoding"
    found = _in_threads(read, range(len(names)), listing, what)
    reasons = {row: reason for row, reason in enumerate(found) if reason}
    if listing.again() != listing:
        raise UserError(f"{listing.where}: its files changed while they were read; start again")
    return digests, reasons


def _shape(listing: Listing, decoding: Decoding) -> tuple[int, int, int]:
    """The shape that all images get."""
    if decoding.channels not in (0, 1, 3):
        allowed = "allowed are 0 (their own), 1 (grey), 3 (red, green, blue)"
        raise UserError(f"config.data.channels = {decoding.channels}: {allowed}")
    size, channels = decoding.size, decoding.channels
    if not size or not channels:
        there = headers(listing)
        own = Counter((height, width) for height, width, _ in there)
        if not size and len(own) > 1:
            raise UserError(
                f"config.data.image_size = 0: the images of {listing.where.partition(': ')[2]} "
                f"have {len(own)} sizes, most often {own.most_common(1)[0][0]}; allowed are "
                "tuples (height, width), which --mode data proposes"
            )
        size = size or next(iter(own), (1, 1))  # without any image, all are listed as corrupt
        channels = channels or (1 if all(grey for *_, grey in there) else 3)
    return (*size, channels)


def _layout(listing: Listing) -> tuple[dict[str, list[str]], tuple[str, ...], dict[str, int]]:
    """The names in each split, the classes, and the class of each name."""
    parts = {name: PurePosixPath(name).parts for name, *_ in listing.files if _is_image(name)}
    if not parts:
        raise UserError(f"{listing.where}: has no images, files {', '.join(SUFFIXES)}")
    while len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {name: part[1:] for name, part in parts.items()}
    tops = {part[0] for part in parts.values() if len(part) > 1}
    if tops & set(_SPLITS):
        if tops != set(_SPLITS) or any(len(part) == 1 for part in parts.values()):
            raise UserError(
                f"{listing.where}: has the folders {', '.join(sorted(tops))}; allowed beside train "
                "is test, with all images in the two"
            )
        splits = {s: [name for name, part in parts.items() if part[0] == s] for s in _SPLITS}
        parts = {name: part[1:] for name, part in parts.items()}
    else:
        names = list(parts)
        if len(names) < _FEWEST:
            raise UserError(f"{listing.where}: has {len(names)} images; at least {_FEWEST}")
        splits = {s: [names[row] for row in rows] for s, rows in held_out(len(names)).items()}
    folder_of = {name: part[0] if len(part) > 1 else "" for name, part in parts.items()}
    classes = tuple(sorted(set(folder_of.values())))
    if len(classes) < 2:
        return splits, (), {}
    if "" in classes:
        loose = sum(not folder for folder in folder_of.values())
        raise UserError(
            f"{listing.where}: {loose} images lie beside the folders of classes "
            f"{', '.join(classes[1:])[:200]}; allowed are images in folders, or no folders"
        )
    untaught = set(classes) - {folder_of[name] for name in splits["train"]}
    if untaught and tops == set(_SPLITS):  # else it is by the chance of the tenth
        raise UserError(
            f"{listing.where}: no training image of the classes {', '.join(sorted(untaught))[:200]}"
        )
    return splits, classes, {name: classes.index(folder) for name, folder in folder_of.items()}


def _is_image(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def _left_out(listing: Listing) -> list[str]:
    """The files that are no images by their names, by what their names end in."""
    others = [PurePosixPath(name) for name, *_ in listing.files if not _is_image(name)]
    return [
        f"{count} files {suffix or 'without a suffix'}: hidden, or no images by their names"
        for suffix, count in sorted(Counter(other.suffix.lower() for other in others).items())
    ]


def _tell(listing: Listing, corrupt: dict[str, str], number: int, skip: bool) -> None:
    """Ends at corrupt files, or reports that they are left out."""
    if not corrupt:
        return
    shown = ", ".join(f"{name} ({why})" for name, why in list(corrupt.items())[:_SHOWN])
    more = ", …" if len(corrupt) > _SHOWN else ""
    line = f"{len(corrupt)} of {number} images cannot be used: {shown}{more}"
    if not skip:
        raise UserError(
            f"{listing.where}: {line}; mend or remove them, or leave them out by "
            "config.data.skip_corrupt=true"
        )
    print(printable(f"note: {listing.where}: {line}; left out"), file=sys.stderr)


def _in_threads(
    function: Callable[[Any, Open], Any], items: Sequence[Any], listing: Listing, what: str
) -> Iterator[Any]:
    """The function's results in the order of the items; a bar where it takes long."""
    with warnings.catch_warnings(), listing.opened() as open_file:
        warnings.simplefilter("ignore")  # Pillow's, of odd files
        pool = ThreadPoolExecutor(_THREADS)
        try:
            parts = (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
            results = itertools.chain.from_iterable(
                pool.map(function, part, itertools.repeat(open_file)) for part in parts
            )
            title = f"{listing.name}: {what}"
            yield from bar(quiet=True, iterable=results, desc=title, total=len(items), delay=1.0)
        except OSError as error:
            why = error.strerror or one_line(error)
            at = f" {error.filename}" if error.filename else ""
            raise UserError(f"{listing.where}:{at} cannot be read ({why})") from error
        finally:
            pool.shutdown(cancel_futures=True)
