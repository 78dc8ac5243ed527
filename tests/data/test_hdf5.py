"""HDF5 files of the user's own: as .npz files, and nothing outside the file."""

import sys

import numpy as np
import pytest

from score_sde.data import describe, load
from score_sde.errors import UserError

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((20, 3)).astype(np.float32)
PIXELS = DRAW.integers(0, 256, (20, 6, 4), np.uint8)


def test_without_h5py_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)  # as the import system has what is not there
    (tmp_path / "mine.h5").touch()
    with pytest.raises(UserError, match=r"data\.name = 'hdf5'.*score-sde\[hdf5\]"):
        describe("hdf5", str(tmp_path / "mine.h5"))


@pytest.fixture
def file(tmp_path):
    """A function that writes arrays and returns the path; needs h5py."""
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")

    def write(fill=None, **arrays):
        with h5py.File(tmp_path / "mine.h5", "w") as target:
            for name, array in arrays.items():
                target[name] = array
            if fill:
                fill(h5py, target)
        return str(tmp_path / "mine.h5")

    return write


def test_a_file_is_read_as_the_npz_file_of_its_arrays(file, tmp_path):
    names = np.asarray(["a", "b", "c"])
    for data in ({"x": X, "y": X[:, 0] + 2}, {"images": PIXELS, "labels": np.arange(20) % 3}):
        columns = {"columns": names} if "x" in data else {}
        np.savez(tmp_path / "mine.npz", **data, **columns)
        path = file(**data, **{key: value.astype("S") for key, value in columns.items()})
        condition = ("y",) if "y" in data else ()
        ours = describe("hdf5", path, condition=condition)
        theirs = describe("npz", str(tmp_path / "mine.npz"), condition=condition)
        facts = {key: each.facts() for key, each in (("hdf5", ours), ("npz", theirs))}
        for name in facts:
            assert facts[name].pop("name") == name
            assert bool(facts[name].pop("digest")) == ("images" in data)
        assert facts["hdf5"] == facts["npz"]
        for split in ("train", "test"):
            one = load("hdf5", split, path, ours)
            other = load("npz", split, str(tmp_path / "mine.npz"), theirs)
            np.testing.assert_array_equal(one.x, other.x)
            assert one.condition.keys() == other.condition.keys()
            for name, array in one.condition.items():
                np.testing.assert_array_equal(array, other.condition[name])
    before = describe("hdf5", file(images=PIXELS)).digest
    PIXELS[19, 5, 3] ^= 1
    assert describe("hdf5", file(images=PIXELS)).digest != before
    as_text = file(x=X, columns=["a", "b", "c"])  # of variable length
    assert describe("hdf5", as_text).columns == ("a", "b", "c")


def test_what_lies_elsewhere_or_is_no_number_is_refused(file, tmp_path):
    def outside(h5py, target):
        target["x"] = h5py.ExternalLink("other.h5", "/x")

    def raw(h5py, target):
        target.create_dataset("x", (4,), "u1", external=[(str(tmp_path / "secret"), 0, 4)])

    def ragged(h5py, target):
        target.create_dataset("x", (12,), h5py.vlen_dtype(np.float32))

    for fill, words in ((outside, "link"), (raw, "other files"), (ragged, "holds objects")):
        with pytest.raises(UserError, match=rf"^config\.data\.dir.*not an HDF5 file.*{words}"):
            describe("hdf5", file(fill))
    path = file(x=X)
    with open(path, "r+b") as damaged:
        damaged.truncate(900)
    with pytest.raises(UserError, match="not an HDF5 file"):
        describe("hdf5", path)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"), [("x", (2**45, 8), "f4"), ("images", (2**30, 99, 99), "u1")]
)
def test_a_file_that_claims_more_than_it_has(file, name, shape, dtype):
    def hollow(h5py, target):
        target.create_dataset(name, shape, dtype, chunks=(8, *shape[1:]))

    with pytest.raises(UserError, match=rf"{name} has [\d,]+ bytes, of which 0 are in the file"):
        describe("hdf5", file(hollow))
