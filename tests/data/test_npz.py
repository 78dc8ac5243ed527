"""The user's own file: its two layouts, conditions, constants, and each way to be wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from score_sde.data import DatasetInfo, describe, load
from score_sde.data.info import check_fits
from score_sde.errors import UserError

X = (np.random.default_rng(0).standard_normal((40, 3)) * [1.0, 2.0, 0.1] + [0.0, 5.0, -3.0]).astype(
    np.float32
)
LABELS = np.arange(40) % 3
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 6, 4), np.uint8)


@pytest.fixture
def file(tmp_path):
    """A function that writes arrays and returns the path."""

    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return write


def test_without_a_test_split_the_last_tenth_of_a_permutation_is_held_out(file):
    path = file(x=X.astype(np.float64), labels=LABELS, notes=np.asarray("not read"))
    info = describe("npz", path)
    assert info.splits == {"train": 36, "test": 4} and info.num_classes == 3
    assert info.shape == (3,) and info.columns == ("0", "1", "2") and info.levels is None
    train, test = (load("npz", split, path, info) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(np.concatenate([train.x, test.x]), X[order])
    labels = np.concatenate([split.condition["labels"] for split in (train, test)])
    np.testing.assert_array_equal(labels, LABELS[order])
    assert train.x.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_allclose(info.mean, train.x.astype(np.float64).mean(0))
    np.testing.assert_allclose(info.std, train.x.astype(np.float64).std(0))


def test_columns_named_as_conditions_are_taken_out_and_standardised(file):
    path = file(x=X[:30], x_test=X[30:], columns=["a", "b", "c"])
    info = describe("npz", path, condition=("c", 0), bin_width=0.5)
    assert info.columns == ("b",) and info.condition == ("c", "a") and info.shape == (1,)
    assert info.bin_width == (0.5,) and info.splits == {"train": 30, "test": 10}
    train, test = (load("npz", split, path, info) for split in ("train", "test"))
    np.testing.assert_array_equal(test.x, X[30:, 1:2])
    # Float32's rounding.
    np.testing.assert_allclose(train.condition["vector"].mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(train.condition["vector"].std(0), 1.0, rtol=1e-5)
    back = test.condition["vector"] * info.condition_std + info.condition_mean
    np.testing.assert_allclose(back, X[30:, [2, 0]], rtol=1e-5, atol=1e-6)
    assert test.condition["vector"].dtype == np.float32
    assert load("npz", "test", path).x.shape == (10, 3)  # without a run's info all columns
    for wrong in ([[1.0]], [1.0, 2.0], 1.0):  # which would all be spread to two columns
        with pytest.raises(ValueError, match="rows of the columns c, a"):
            info.standardised(wrong)
    with pytest.raises(ValueError, match="no condition"):
        describe("npz", path).standardised([[1.0]])


def test_what_a_run_keeps_survives_json(file):
    info = describe("npz", file(x=X, labels=LABELS), condition=(1,))
    for each in (info, describe("digits"), describe("moons")):
        assert DatasetInfo.from_facts(json.loads(json.dumps(each.facts()))) == each
    with pytest.raises(TypeError, match="unheard"):
        DatasetInfo.from_facts({**info.facts(), "unheard": 1})


def test_images_of_a_file_are_read_in_their_own_shape(file):
    colours = np.stack([PIXELS, PIXELS // 2, PIXELS // 3], axis=-1)
    path = file(images=PIXELS, labels=LABELS)
    info = describe("npz", path)
    assert (info.shape, info.levels, info.num_classes) == ((6, 4, 1), 256, 3)
    assert info.splits == {"train": 36, "test": 4} and not info.columns
    train, test = (load("npz", split, path, info) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(40)
    joined = np.concatenate([train.x, test.x])[..., 0]
    np.testing.assert_array_equal(joined, PIXELS[order])
    np.testing.assert_array_equal(train.condition["labels"], LABELS[order[:36]])
    with pytest.raises(UserError, match=r"image_size = 8: allowed are 0 \(its own \(6, 4\) pixels"):
        describe("npz", path, image_size=8)
    assert describe("npz", path, image_size=(6, 4), channels=1) == info
    path = file(x=colours[:30], x_test=colours[30:], labels=LABELS[:30], labels_test=LABELS[30:])
    other = describe("npz", path)
    assert other.shape == (6, 4, 3) and other.splits == {"train": 30, "test": 10}
    np.testing.assert_array_equal(load("npz", "test", path, other).x, colours[30:])
    # What a run keeps tells sets apart by their content.
    changed = PIXELS.copy()
    changed[39, 5, 3] ^= 1
    digests = {describe("npz", file(images=each)).digest for each in (PIXELS, changed, PIXELS[1:])}
    assert len(digests) == 3 and "" not in digests


def test_further_arrays_become_conditions(file):
    """Of vectors and of images; a name is one column, or all columns of an array."""
    y, z = X[:, 0] * 3 + 1, np.stack([X[:, 1], X[:, 2] * 2], axis=1)
    short = np.ones(7)
    for data in ({"x": X[:, :2]}, {"images": PIXELS}):
        path = file(**data, y=y, z=z, short=short, notes=["a"] * 40)
        info = describe("npz", path, condition=("z", "y"))
        assert info.condition == ("z[0]", "z[1]", "y")
        train = load("npz", "train", path, info)
        rows = np.random.default_rng(0).permutation(40)[:36]
        np.testing.assert_array_equal(
            train.x.reshape(36, -1), next(iter(data.values()))[rows].reshape(36, -1)
        )
        expected = np.concatenate([z, y[:, None]], axis=1)[rows]
        expected = (expected - expected.mean(0)) / expected.std(0)
        # Float32's rounding.
        np.testing.assert_allclose(train.condition["vector"], expected, rtol=1e-4, atol=1e-5)
        assert set(train.condition) == {"vector"}
        assert describe("npz", path, condition=("z[1]",)).condition == ("z[1]",)
        with pytest.raises(UserError, match=r"no column short; allowed are .*y, z\[0\], z\[1\]"):
            describe("npz", path, condition=("short",))
        for bad in (np.inf, np.nan, 1e300):
            path = file(**data, y=np.where(np.arange(40) < 30, np.float64(bad), y))
            assert describe("npz", path).splits == {"train": 36, "test": 4}
            with pytest.raises(UserError, match=r"column y of npz is constant.* or not finite"):
                describe("npz", path, condition=("y",))
    path = file(x=X[:30], x_test=X[30:], y=y[:30], y_test=y[30:], z=z[:30])
    assert describe("npz", path, condition=("y",)).shape == (3,)
    with pytest.raises(UserError, match="no column z; allowed are 0, 1, 2, y, and"):
        describe("npz", path, condition=("z",))  # it has no rows of the test split


def test_what_a_header_says_is_not_believed(tmp_path):
    """An array that claims more than is there, or more than any memory, takes none."""
    path = tmp_path / "mine.npz"
    for shape, words in (((2**40, 2), "by its header"), ((41, 3), "by its header")):
        content = io.BytesIO()
        npy.write_array_header_1_0(
            content, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content.getvalue() + X.tobytes())
        with pytest.raises(UserError, match=words):
            describe("npz", str(path))
    with pytest.raises(UserError, match=r"mine: its arrays take 1048576\.0 GiB; this machine has"):
        check_fits(2**50, "mine")


def test_the_files_columns_must_be_the_runs(file):
    info = describe("npz", file(x=X, columns=["a", "b", "c"]))
    with pytest.raises(UserError, match=r"columns a, b, d.* a, b, c"):
        load("npz", "test", file(x=X, columns=["a", "b", "d"]), info)


NAN = X.copy()
NAN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": X}, ("no array x", "y")),
        ({"x": X[:, 0]}, ("x is float32(40,)", "(N, D)")),
        ({"x": X[:, :, None]}, ("x is float32(40, 3, 1)", "uint8 (N, H, W)", "0 to 255")),
        ({"x": PIXELS[..., None, None]}, ("x is uint8(40, 6, 4, 1, 1)", "(N, H, W, C)")),
        ({"images": np.stack([PIXELS] * 2, axis=-1)}, ("images is uint8(40, 6, 4, 2)", "1 or 3")),
        ({"images": PIXELS[:9]}, ("9 rows", "10")),
        ({"images": PIXELS, "images_test": PIXELS[:, :5]}, ("images_test", "(M, 6, 4)")),
        ({"images": PIXELS, "labels": LABELS[:7]}, ("labels is int64(7,)", "(40,)")),
        ({f"arr_{i}": PIXELS[i, :i] for i in range(3)}, ("no array x or images", "arr_2")),
        ({"x": X[:, :0]}, ("x is float32(40, 0)",)),
        ({"x": X.astype(str)}, ("x is <U", "numbers")),
        ({"x": X.astype(complex)}, ("complex", "numbers")),
        ({"x": X.astype(object)}, ("mine.npz", "x.npy holds pickled objects")),
        ({"x": X[:9]}, ("9 rows", "10")),
        ({"x": X[:1], "x_test": X}, ("1 rows", "2")),
        ({"x": X, "x_test": X[:0]}, ("x_test", "0 rows")),
        ({"x": X, "x_test": X[:, :2]}, ("x_test", "(M, 3)")),
        ({"x": NAN}, ("x has nan in row 7, column 1", "finite")),
        ({"x": X, "x_test": NAN}, ("x_test has nan in row 7, column 1", "finite")),
        ({"x": X.astype(np.float64) * 1e300}, ("in row 0, column 0", "finite in float32")),
        ({"x": X, "labels": LABELS[:5]}, ("labels is int64(5,)", "(40,)")),
        ({"x": X, "labels": LABELS - 1}, ("labels", "from 0 to 16383")),
        ({"x": X, "labels": LABELS + 2**31}, ("labels", "2147483650", "from 0 to 16383")),
        ({"x": X, "labels": LABELS / 2}, ("labels is float64", "integers")),
        ({"x": X, "x_test": X, "labels": LABELS}, ("labels_test",)),
        ({"x": X, "columns": ["a", "b"]}, ("columns", "3 different names")),
        ({"x": X, "columns": "abc"}, ("columns is <U3()", "3 different names")),
        ({"x": X, "columns": ["a", "b", "b"]}, ("columns", "3 different names")),
        ({"x": X * [1, 1, 0] + [0, 0, 7]}, ("column 2", "constant", "7")),
        ({"x": X * [1, 1, 1e-5] + [0, 0, 100]}, ("column 2", "constant in float32")),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(file, arrays, words):
    with pytest.raises(UserError) as caught:
        describe("npz", file(**arrays))
    line = str(caught.value)
    assert line.startswith("config.data.") and "\n" not in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize("kind", ["none", "missing", "folder", "text", "npy", "cut", "pickle"])
def test_what_is_no_npz_file_is_refused(tmp_path, kind):
    path = tmp_path / "mine.npz"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("1,2,3")
    elif kind == "npy":
        with path.open("wb") as target:
            np.save(target, X)
    elif kind == "pickle":
        X.dump(path)
    elif kind == "cut":
        np.savez(path, x=X)
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^config\.data\.dir.*\.npz"):
        load("npz", "train", "" if kind == "none" else str(path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"condition": ("d",)}, ("data.condition", "no column d", "a, b, c", "0 to 2")),
        ({"condition": (3,)}, ("data.condition", "no column 3")),
        ({"condition": ("a", 0)}, ("data.condition", "different")),
        ({"condition": ("a", "b", "c")}, ("data.condition", "not all")),
        ({"bin_width": (1.0, 2.0)}, ("data.bin_width", "a, b, c")),
        ({"bin_width": -1.0}, ("data.bin_width", "positive")),
    ],
)
def test_conditions_and_widths_that_cannot_be_are_refused(file, settings, words):
    with pytest.raises(UserError) as caught:
        describe("npz", file(x=X, columns=["a", "b", "c"]), **settings)
    assert all(word in str(caught.value) for word in words)


def test_images_have_neither_conditions_nor_widths():
    with pytest.raises(UserError, match=r"data\.condition.*digits"):
        describe("digits", condition=(0,))
    with pytest.raises(UserError, match=r"data\.bin_width.*digits"):
        describe("digits", bin_width=1.0)


def test_images_say_how_many_levels_they_have(tmp_path):
    path = tmp_path / "samples.npz"
    images = np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8) % 17
    np.savez(path, images=images, levels=17)
    info = describe("npz", str(path))
    assert info.levels == 17 and load("npz", "train", str(path), info).x.max() == 16
    np.savez(path, images=images + 1, levels=17)
    with pytest.raises(UserError, match="has pixel 17, allowed are 0 to 16"):
        load("npz", "train", str(path), describe("npz", str(path)))
    np.savez(path, images=images, levels=1.5)
    with pytest.raises(UserError, match=r"levels is 1\.5; allowed are 2 to 256"):
        describe("npz", str(path))
