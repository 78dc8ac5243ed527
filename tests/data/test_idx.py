"""Four IDX files of the user's own."""

import gzip

import numpy as np
import pytest

from score_sde.data import describe, load
from score_sde.errors import UserError

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (12, 5, 7), np.uint8)
LABELS = (np.arange(12) % 4).astype(np.uint8)
NAMES = {
    "train-images-idx3-ubyte": IMAGES[:8],
    "train-labels-idx1-ubyte": LABELS[:8],
    "t10k-images-idx3-ubyte": IMAGES[8:],
    "t10k-labels-idx1-ubyte": LABELS[8:],
}


def idx(array):
    shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    for name, array in NAMES.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def test_four_files_packed_or_not(folder):
    info = describe("idx", str(folder))
    assert (info.shape, info.num_classes, info.splits) == ((5, 7, 1), 4, {"train": 8, "test": 4})
    test = load("idx", "test", str(folder), info)
    np.testing.assert_array_equal(test.x[..., 0], IMAGES[8:])
    np.testing.assert_array_equal(test.condition["labels"], LABELS[8:])
    for name in NAMES:
        path = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert describe("idx", str(folder)) == info


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte", None, "has no train-images-idx3-ubyte; .* MNIST's four files"),
        ("t10k-labels-idx1-ubyte", idx(LABELS[:3]), "4 test images and 3 labels"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[8:, :4]), r"\(4, 7, 1\), the training.*\(5, 7, 1\)"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[8:])[:-1], "damaged or incomplete"),
        ("t10k-images-idx3-ubyte", idx(LABELS), r"shape \(12,\); allowed are 3 dimensions"),
        ("train-labels-idx1-ubyte", idx(LABELS[:0]), r"shape \(0,\)"),
        ("train-labels-idx1-ubyte", b"", "not an IDX file"),
        # A claim of 2^96 bytes takes no memory.
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "GiB; this machine has"),
    ],
)
def test_files_that_are_wrong_are_refused_in_one_line(folder, name, content, words):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^config\.data\.dir.*{words}"):
        describe("idx", str(folder))


def test_the_folder_must_be_named():
    with pytest.raises(UserError, match=r"config\.data\.dir = None: has no train-images"):
        load("idx", "train")
