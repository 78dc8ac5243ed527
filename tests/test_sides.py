"""The images, features and statistics that a user names for an evaluation."""

import numpy as np
import pytest
from PIL import Image

from score_sde.errors import UserError
from score_sde.evaluation import statistics, write_statistics
from score_sde.modes.sides import named


def all_of(rows):
    return np.concatenate([*rows])


def images(n=20, channels=3, levels=256):
    return np.random.default_rng(0).integers(0, levels, (n, 6, 4, channels), np.uint8)


def test_a_folder_of_images(tmp_path):
    for number, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    found = named(tmp_path)
    np.testing.assert_array_equal(all_of(found.images), images())
    assert found.about == {"path": str(tmp_path), "n": 20}
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: no image"):
        all_of(named(tmp_path).images)
    Image.fromarray(images()[0, :4]).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: is \(4, 4\); allowed is .* \(6, 4\)"):
        all_of(named(tmp_path).images)


def test_images_in_folders_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(images()[0]).save(tmp_path / "a" / "0.png")
    with pytest.raises(UserError, match="no images in the folder itself; allowed are 20 or more"):
        named(tmp_path)


def test_files_of_images_and_statistics(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images())
    np.testing.assert_array_equal(all_of(named(path).images), images())
    np.savez(path, np.asfortranarray(images()))
    np.testing.assert_array_equal(all_of(named(path).images), images())
    # As `--mode sample` writes the digits: 17 levels, of which 16 is white.
    digits = images(channels=1, levels=17)
    np.savez(path, images=digits, arr_0_is="images x 255/16, rounded")
    np.testing.assert_array_equal(all_of(named(path).images), np.rint(digits * 255.0 / 16))
    write_statistics(path, statistics([np.eye(3)], {"set": "x"}))
    found = named(path)
    assert found.images is None and found.about == {"path": str(path), "n": 3, "set": "x"}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "allowed are a folder of images"),
        ({"images": np.zeros((30, 4, 4, 3))}, "images is float64(30, 4, 4, 3); allowed is uint8"),
        ({"images": images(19)}, "19 images; allowed are 20 or more"),
        ({"mu": np.zeros(3)}, "has no sigma"),
    ],
)
def test_files_of_something_else(arrays, said, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as error:
        named(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"text"])
def test_no_files_of_arrays(content, tmp_path):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    said = "no such file" if content is None else "allowed are a folder of images"
    with pytest.raises(UserError, match=said):
        named(tmp_path / "a.npz")
