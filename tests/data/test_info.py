"""What all sets share: the memory that there is, and arrays that are not held twice."""

import gzip
import os
import shutil
import tempfile
import tracemalloc

import numpy as np
import pytest

from score_sde.data import describe, load
from score_sde.data.info import _memory, taken
from score_sde.errors import UserError

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("", {}, None),
        ("0::/user/ours\n", {"user/ours/memory.max": "max"}, None),
        ("0::/user/ours\n", {"user/ours/memory.max": "3000"}, 3000),
        ("0::/user/ours\n", {"user/ours/memory.max": "max", "user/memory.max": "2000"}, 2000),
        ("0::/user/ours\n", {"user/ours/memory.max": "1000", "memory.max": "2000"}, 1000),
        # Version 1, within a container: the host's path is not there.
        ("4:memory:/docker/1\n3:cpu:/\n0::/\n", {"memory/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{2**63 - 4096}"}, None),
    ],
)
def test_a_container_s_limit_counts(groups, files, limit, tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert _memory(tmp_path) == (machine if limit is None else limit)
    assert _memory(tmp_path / "none") == machine >= _memory()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(40, 3), (40, 4, 5, 3)])
def test_items_are_taken_in_place(shape, order):
    for count in (40, 36, 4, 0):
        rows = DRAW.permutation(40)[:count]
        x = np.asarray(DRAW.integers(0, 256, shape, np.uint8), order=order)
        expected = x[rows]
        np.testing.assert_array_equal(taken(x, rows), expected)


def idx(array):
    shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def npz(place, images):
    np.savez_compressed(place / "mine.npz", x=images)
    return "npz", place / "mine.npz"


def idx_files(place, images):
    for name, number in (("train", len(images)), ("t10k", 1)):
        for kind, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0])):
            content = gzip.compress(idx(array[:number]), 1)
            (place / f"{name}-{kind}-ubyte.gz").write_bytes(content)
    return "idx", place


def hdf5(place, images):
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with h5py.File(place / "mine.h5", "w") as target:
        target.create_dataset("x", data=images, compression=1, chunks=(10, *images.shape[1:]))
    return "hdf5", place / "mine.h5"


@pytest.mark.parametrize("write", [npz, idx_files, hdf5])
def test_packed_arrays_are_not_held_twice(write, tmp_path):
    images = np.zeros((3000, 64, 64), np.uint8)  # 12 MB
    name, path = write(tmp_path, images)
    info = describe(name, str(path))
    tracemalloc.start()
    x = load(name, "train", str(path), info, stream=False).x
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.shape[0] == info.splits["train"]
    assert peak < 1.4 * images.nbytes  # a tenth that is held out, and parts that are unpacked


@pytest.mark.parametrize("write", [npz, idx_files, hdf5])
def test_packed_arrays_that_do_not_fit_are_refused(write, tmp_path, monkeypatch):
    """By a machine of 3 kB."""
    name, path = write(tmp_path, np.zeros((30, 64, 64), np.uint8))
    sysconf, small = os.sysconf, {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 3}
    monkeypatch.setattr(os, "sysconf", lambda name: small.get(name) or sysconf(name))
    with pytest.raises(UserError, match=r"^config\.data\.dir: .* GiB; this machine has"):
        load(name, "train", str(path), stream=False)


def test_levels_and_columns_are_read_by_what_they_must_be(tmp_path):
    """Not whole first: they may be as large as they like."""
    images = DRAW.integers(0, 17, (12, 4, 4), np.uint8)
    for arrays, words in (
        ({"images": images, "levels": np.zeros((3, 2), int)}, r"levels is int64\(3, 2\); allowed"),
        ({"x": np.eye(12), "columns": np.full((12, 2), "a")}, r"columns is <U1\(12, 2\); allowed"),
        ({"x": np.eye(12), "columns": np.arange(12)}, r"columns is int64\(12,\); allowed are 12"),
    ):
        np.savez(tmp_path / "mine.npz", **arrays)
        with pytest.raises(UserError, match=words):
            describe("npz", str(tmp_path / "mine.npz"))


def test_few_levels_of_a_stream_are_checked_in_parts(tmp_path):
    images = DRAW.integers(0, 17, (1200, 128, 128), np.uint8)  # 20 MB
    images[1100] = 17
    np.savez(tmp_path / "mine.npz", images=images, levels=17)
    del images
    info = describe("npz", str(tmp_path / "mine.npz"))
    tracemalloc.start()
    with pytest.raises(UserError, match="has pixel 17, allowed are 0 to 16"):
        for split in ("test", "train"):
            load("npz", split, str(tmp_path / "mine.npz"), info, stream=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 18e6  # 1000 images at a time


PERMISSION = """
import os
from pathlib import Path
from score_sde.data import describe
from score_sde.errors import UserError

place = Path({place!r})
sets = [(name, place / name) for name in ("zip", "npz", "hdf5", "folder")]
sets += [("folder", place / "closed"), ("idx", place)]

def ask():
    for name, path in sets:
        try:
            describe(name, str(path))
        except UserError as error:
            yield str(error)

names = [f"{{s}}-{{k}}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
files = [place / name for name in ("zip", "npz", "hdf5", "folder/7.png", *names)]
for name in ("folder", "closed"):
    (place / name).mkdir()
for path in (*files, *(place / "folder" / f"{{index}}.png" for index in range(10))):
    path.write_bytes(b"none")
    path.chmod(0o644)
list(ask())  # imports what it needs, which may be closed to others
for path in (*files, place / "closed"):
    path.chmod(0)
if os.geteuid() == 0:  # who may read everything
    for path in (place, place / "folder"):
        path.chmod(0o755)
    os.setuid(65534)
print(*ask(), sep="\\n")
"""


def test_what_may_not_be_read_is_said_so(run_python):
    """By another user where the tests are root's."""
    place = tempfile.mkdtemp()  # pytest's own folders are closed to others
    try:
        said = run_python(PERMISSION.format(place=place)).stdout.splitlines()
    finally:
        shutil.rmtree(place)
    assert len(said) == 6, said
    for line in said:
        assert line.startswith("config.data.dir") and "Permission denied" in line, line
        assert " not a" not in line, line
