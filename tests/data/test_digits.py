"""The built-in digits: what the split holds, and a figure that only the right split gives."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from score_sde.data import Arrays, DatasetInfo, digits, load
from score_sde.data.info import check
from score_sde.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return load("digits", "train"), load("digits", "test")


def test_split_is_the_fixed_permutation(splits):
    train, test = splits
    order = np.random.default_rng(0).permutation(1797)
    bunch = load_digits()
    images = np.concatenate([train.x, test.x])
    labels = np.concatenate([s.condition["labels"] for s in splits])
    np.testing.assert_array_equal(images[..., 0], bunch.images[order])
    np.testing.assert_array_equal(labels, bunch.target[order])
    assert len(test.x) == 297
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == digits.INFO.levels - 1


def test_bits_per_dim_of_independent_pixels(splits):
    """2.42 bits/dim on the test set: measured elsewhere on this split, by one count per value."""
    train, test = (s.x.reshape(-1, 64) for s in splits)
    counts = 1.0 + np.stack([(train == value).sum(0) for value in range(17)])
    bits = -np.log2(counts / counts.sum(0))[test, np.arange(64)]
    assert round(bits.mean(), 2) == 2.42


def test_data_dir_is_not_used():
    assert len(load("digits", "test", "/no/such/folder").condition["labels"]) == 297


@pytest.mark.parametrize(
    "name, split, line",
    [
        (
            "mnist",
            "train",
            "config.data.name: 'mnist' is not one of digits, cifar10, fashion_mnist, moons, "
            "swiss_roll, npz, hdf5, idx, folder, zip, tfds:NAME, images, arrays, celeba, "
            "lsun_bedroom, lsun_church, celebahq, ffhq",
        ),
        ("digits", "valid", "split: 'valid' is not one of train, test"),
        (
            "ffhq",
            "train",
            "config.data.name = 'ffhq': its images cannot be read, only its models can be used; "
            "sets that can are digits, cifar10, fashion_mnist, moons, swiss_roll, npz, hdf5, idx, "
            "folder, zip, tfds:NAME",
        ),
    ],
)
def test_unknown_name_and_split(name, split, line):
    with pytest.raises(UserError) as caught:
        load(name, split)
    assert str(caught.value) == line


TINY = DatasetInfo("tiny", (2, 2, 1), 17, 10, {"test": 3})
LABELS = np.arange(3, dtype=np.int32)
GOOD = Arrays(np.full((3, 2, 2, 1), 16, np.uint8), {"labels": LABELS})


@pytest.mark.parametrize(
    "change, line",
    [
        ({"x": GOOD.x[:2]}, r"uint8\(2, 2, 2, 1\), expected uint8\(3, 2, 2, 1\)"),
        ({"x": GOOD.x.astype(np.float32)}, "is float32"),
        ({"x": GOOD.x + np.uint8(1)}, "has pixel 17, allowed are 0 to 16"),
        ({"condition": {}}, "no labels"),
        ({"condition": {"labels": LABELS[:2]}}, r"labels int32\(2,\), expected int32\(3,\)"),
        ({"condition": {"labels": LABELS.astype(np.int64)}}, "labels int64"),
        ({"condition": {"labels": LABELS - 1}}, "labels -1 to 1, allowed are 0 to 9"),
        ({"condition": {"labels": LABELS + 8}}, "labels 8 to 10, allowed are 0 to 9"),
    ],
)
def test_check_names_what_does_not_fit(change, line):
    check(GOOD, TINY, "test")
    with pytest.raises(UserError, match=line):
        check(GOOD._replace(**change), TINY, "test")


def test_import_is_light(run_python):
    """`--help` imports the table of sets: no reader and no framework may come with it."""
    heavy = "jax flax optax orbax diffrax sklearn tensorflow_datasets tqdm PIL urllib.request"
    code = f"import sys, score_sde.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"
