"""Features in batches, their statistics, and files of these."""

import tracemalloc

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation import (
    Statistics,
    check_same,
    features,
    read_statistics,
    statistics,
    write_statistics,
)


def test_batches_are_filled_up():
    seen = []

    def corner(images):
        seen.append(images.shape)
        return images[:, 0, 0].astype(np.float32)

    images = np.arange(7 * 12, dtype=np.uint8).reshape(7, 2, 2, 3)
    counts = []
    found = features(corner, images, batch_size=3, done=counts.append)
    np.testing.assert_array_equal(found, images[:, 0, 0])
    assert seen == [(3, 2, 2, 3)] * 3 and counts == [3, 3, 1]
    assert features(corner, images[:2]).shape == (2, 3) and seen[-1] == (2, 2, 2, 3)


def test_statistics_of_parts():
    x = np.random.default_rng(0).normal(1e4, [1.0, 0.1, 10.0], (500, 3))
    found = statistics([x[:1], x[1:200], x[200:200], x[200:]])
    assert found.n == 500
    # The squares are 1e8, of which float64 keeps 1e-8; about the mean nothing is lost.
    np.testing.assert_allclose(found.mu, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.sigma, np.cov(x.T), rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="1 rows of features"):
        statistics([x[:1]])


def test_their_memory_does_not_grow():
    def parts(count):
        rng = np.random.default_rng(0)
        return (rng.standard_normal((256, 64), dtype=np.float32) for _ in range(count))

    def peak(count):
        tracemalloc.start()
        statistics(parts(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few = peak(4)
    assert peak(100) < 1.1 * few  # of 25 times as many; some hundred bytes are Python's own


def test_statistics_come_back(tmp_path):
    about = {"set": "digits", "split": "train", "resize": "tf1", "weights": "ab12"}
    written = Statistics(np.arange(3.0), np.eye(3) / 3.0, 17, about)
    write_statistics(tmp_path / "a.npz", written)
    read = read_statistics(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.mu, written.mu)
    np.testing.assert_array_equal(read.sigma, written.sigma)
    assert (read.n, read.about) == (17, about)


def test_files_of_other_tools(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    read = read_statistics(tmp_path / "a.npz")
    assert read.mu.dtype == np.float64 and (read.n, read.about) == (0, {})


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"mu": np.zeros(3)}, "has no sigma"),
        ({"x": np.zeros(3)}, "has no mu and no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "mu is (3,), sigma (4, 4)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "allowed are finite"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "no statistics"),
        ({"mu": np.zeros(0), "sigma": np.eye(0)}, "mu is (0,), sigma (0, 0)"),
        ({"mu": np.zeros(3), "sigma": 1j * np.eye(3)}, "no statistics (complex numbers)"),
        ({"mu": np.zeros(3), "sigma": np.tri(3)}, "sigma is no covariance"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma is no covariance"),
    ],
)
def test_files_of_something_else(arrays, expected, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as error:
        read_statistics(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value) and expected in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"text"])
def test_no_files_of_arrays(content, tmp_path):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="no statistics"):
        read_statistics(tmp_path / "a.npz")


def test_features_of_another_kind_are_refused():
    ours = {"features": "inception", "resize": "tf1", "weights": "ab"}
    check_same(ours, {}, "a.npz")
    check_same(ours, {"set": "x", "resize": "tf1"}, "a.npz")
    with pytest.raises(UserError, match=r"a\.npz: its resize is 'halfpixel'; allowed is 'tf1'"):
        check_same(ours, {"resize": "halfpixel"}, "a.npz")
