"""Sets that are streamed: the arrays that memory would hold, and files that change in between."""

import dataclasses
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import Streamed, describe, load
from score_sde.data.info import _memory, is_large
from score_sde.errors import UserError

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (30, 6, 4, 3), np.uint8)
LABELS = np.arange(30) % 3


def folder(place):
    root = place / "photos"
    for index, image in enumerate(PIXELS):
        path = root / f"class {index % 3}" / f"{index}ü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def archive(place):
    root, path = folder(place), place / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in root.rglob("*.png"):
            target.write(file, "./" + file.relative_to(root).as_posix())
    return path


def npz(place, **arrays):
    path = place / "mine.npz"
    np.savez(path, **(arrays or {"x": PIXELS, "labels": LABELS}))
    return path


def splits(place):
    parts = {"images": PIXELS[:20, ..., 0], "images_test": PIXELS[20:, ..., 0]}
    return npz(place, **parts, levels=np.asarray(256))


def hdf5(place):
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    path = place / "mine.h5"
    with h5py.File(path, "w") as target:
        target["x"], target["labels"] = PIXELS, LABELS
    return path


KINDS = {"folder": folder, "zip": archive, "npz": npz, "npz of splits": splits, "hdf5": hdf5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_set_is_what_memory_would_hold(kind, tmp_path):
    name, path = kind.split()[0], str(KINDS[kind](tmp_path))
    info = describe(name, path, stream=True)
    assert info == describe(name, path)
    for split in ("train", "test"):
        one, other = (load(name, split, path, info, stream=stream) for stream in (True, None))
        assert isinstance(one.x, Streamed) and isinstance(other.x, np.ndarray)
        assert (one.x.shape, one.x.dtype) == (other.x.shape, other.x.dtype)
        assert one.x.nbytes == other.x.nbytes
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.x[1], other.x[1])
        rows = [2, 0, 2]  # in any order, and more than once
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(one.x))[rows], other.x[rows])
        for key in one.condition | other.condition:
            np.testing.assert_array_equal(one.condition[key], other.condition[key])


def test_corrupt_files_are_left_out_in_the_same_way(tmp_path):
    root = folder(tmp_path)
    (root / "class 1" / "1ü.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"1 of 30 images cannot be used: class 1/1.*no image"):
        describe("folder", str(root), stream=True)
    info = describe("folder", str(root), skip_corrupt=True)
    assert info == describe("folder", str(root), skip_corrupt=True, stream=True)
    parts = [
        load("folder", "train", str(root), info, skip_corrupt=True, stream=stream)
        for stream in (True, False)
    ]
    np.testing.assert_array_equal(parts[0].x, parts[1].x)


def another(path: Path) -> None:
    Image.fromarray(255 - PIXELS[0]).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    "kind, change, line",
    [
        ("folder", Path.unlink, r": class 0/0ü\.png: cannot be read any more \(No such file"),
        ("folder", another, r": class 0/0ü\.png: has changed since the start$"),
        ("folder", cut, r": class 0/0ü\.png: has changed since the start$"),
        ("zip", Path.unlink, r"cannot be read any more \(No such file"),
        ("zip", cut, r"photos\.zip: .*cannot be read any more \(File is not a zip file"),
        ("npz", Path.unlink, r"mine\.npz: cannot be read any more \(No such file"),
        ("npz", cut, r"mine\.npz: the file has changed since the start$"),
        ("hdf5", cut, r"mine\.h5: the file has changed since the start$"),
    ],
)
def test_files_that_change_after_the_start(kind, change, line, tmp_path):
    path = KINDS[kind](tmp_path)
    x = load(kind, "train", str(path), stream=True).x
    change(path / "class 0" / "0ü.png" if kind == "folder" else path)
    with pytest.raises(UserError, match=rf"^config\.data\.dir: .*{line}"):
        np.asarray(x)
    if kind == "folder":  # the others can still be read
        with pytest.raises(UserError):
            x[:]
        assert sum(_readable(x, row) for row in range(len(x))) >= len(x) - 1


def _readable(x: Streamed, row: int) -> bool:
    try:
        return x[row].shape == (6, 4, 3)
    except UserError:
        return False


def test_many_images_are_streamed_unless_forced(tmp_path, monkeypatch):
    memory = _memory()
    assert is_large(memory) and not is_large(memory // 4)
    path = str(folder(tmp_path))
    sysconf = os.sysconf
    # A machine of 2 kB: the 30 images take 2160 bytes, of which half are too many.
    small = {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 3}
    monkeypatch.setattr(os, "sysconf", lambda name: small.get(name) or sysconf(name))
    assert isinstance(load("folder", "train", path).x, Streamed)
    assert isinstance(load("folder", "train", path, stream=False).x, np.ndarray)
    vectors = npz(tmp_path, x=DRAW.standard_normal((70, 2)).astype(np.float32))
    assert isinstance(load("npz", "train", str(vectors)).x, np.ndarray)
    assert isinstance(load("digits", "train").x, np.ndarray)


@pytest.mark.parametrize(
    "name, arrays, line",
    [
        ("digits", None, r"stream = True: allowed is False for digits, which is read into memory"),
        ("moons", None, r"stream = True: allowed is False for moons"),
        ("npz", {"x": PIXELS.reshape(30, -1)}, r"stream = True: allowed is False for npz"),
        (
            "npz",
            {"x": np.asfortranarray(PIXELS)},
            r"mine\.npz: x has Fortran's order",
        ),
    ],
)
def test_what_cannot_be_streamed(name, arrays, line, tmp_path):
    path = str(npz(tmp_path, **arrays)) if arrays else None
    with pytest.raises(UserError, match=line):
        load(name, "train", path, stream=True)


def test_a_compressed_array_cannot_be_streamed(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", x=PIXELS)
    with pytest.raises(
        UserError, match=r"x is compressed and .* allowed are files of numpy\.savez"
    ):
        load("npz", "train", str(tmp_path / "mine.npz"), stream=True)


def test_another_order_of_the_same_images(tmp_path):
    x = load("npz", "train", str(npz(tmp_path)), stream=True).x
    part = x.part(slice(3, None, 2))
    np.testing.assert_array_equal(part, np.asarray(x)[3::2])
    assert dataclasses.replace(part, rows=part.rows[:0])[:].shape == (0, 6, 4, 3)
