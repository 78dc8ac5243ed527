"""The images, features and statistics that a user names for an evaluation."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from score_sde.errors import UserError
from score_sde.evaluation import rows, statistics, write_statistics
from score_sde.modes.sides import named


def images(n=20, channels=3, levels=256):
    return np.random.default_rng(0).integers(0, levels, (n, 6, 4, channels), np.uint8)


def test_a_folder_of_images(tmp_path):
    for number, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    found = named(tmp_path)
    np.testing.assert_array_equal(found.images.array(), images())
    assert found.about == {"path": str(tmp_path), "n": 20}
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: no image"):
        named(tmp_path).images.array()
    Image.fromarray(images()[0, :4]).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: is \(4, 4\); allowed is .* \(6, 4\)"):
        named(tmp_path).images.array()


def test_a_folder_of_grey_images_stays_grey(tmp_path):
    grey = images(channels=1)
    for number, image in enumerate(grey):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:02}.png")
    np.testing.assert_array_equal(named(tmp_path).images.array(), grey)
    Image.fromarray(images()[0]).save(tmp_path / "20.png")
    found = named(tmp_path).images.array()
    np.testing.assert_array_equal(found, [*np.repeat(grey, 3, axis=-1), images()[0]])


def npz(path, content, shape, method=zipfile.ZIP_STORED):
    """An .npz of `images` uint8, with this content after a header of this shape."""
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", member.getvalue() + content)


DAMAGE = {
    "a byte of the last image": (lambda raw, _: raw, -1, "Bad CRC-32"),
    "a byte of the last image, compressed": (lambda raw, _: raw, -1, ""),
    "cut short within a chunk": (lambda raw, _: raw[:-1], None, "cannot reshape"),
    "cut short at a chunk": (lambda raw, row: raw[: 16 * row], None, "cannot reshape"),
    "longer than it says": (lambda raw, _: raw + b"x", None, "longer than its header says"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_in_a_later_chunk_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 8)  # 20 images are three chunks
    of, at, said = DAMAGE[case]
    # zipfile reads 4096 bytes at a time, and so a small file's end with its begin.
    x, path = (
        np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8),
        tmp_path / "a.npz",
    )
    compressed = zipfile.ZIP_DEFLATED if "compressed" in case else zipfile.ZIP_STORED
    npz(path, of(x.tobytes(), x[0].size), x.shape, compressed)
    if at is not None:
        raw = bytearray(path.read_bytes())
        end = raw.index(b"PK\x01\x02")  # the directory, after the only member
        raw[end + at] ^= 0xFF
        path.write_bytes(raw)
    found = named(path).images  # whose first chunk is whole
    with pytest.raises(UserError) as error:
        found.array()
    assert str(error.value).startswith(f"{path}: images is damaged (") and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_images_in_folders_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(images()[0]).save(tmp_path / "a" / "0.png")
    with pytest.raises(UserError, match="no images in the folder itself; allowed are 20 or more"):
        named(tmp_path)


def test_files_of_images_and_statistics(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images())
    np.testing.assert_array_equal(named(path).images.array(), images())
    np.savez(path, np.asfortranarray(images()))
    np.testing.assert_array_equal(named(path).images.array(), images())
    # As `--mode sample` writes the digits: 17 levels, of which 16 is white.
    digits = images(channels=1, levels=17)
    np.savez(path, images=digits, arr_0_is="images x 255/16, rounded")
    np.testing.assert_array_equal(named(path).images.array(), np.rint(digits * 255.0 / 16))
    write_statistics(path, statistics([np.eye(3)], {"set": "x"}))
    found = named(path)
    assert found.images is None and found.about == {"path": str(path), "n": 3, "set": "x"}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "allowed are a folder of images"),
        ({"images": np.zeros((30, 4, 4, 3))}, "images is float64(30, 4, 4, 3); allowed is uint8"),
        ({"images": images()[:, :0]}, "images is uint8(20, 0, 4, 3); allowed is uint8"),
        ({"images": images(19)}, "19 images; allowed are 20 or more"),
        ({"images": images(), "levels": 1}, "allowed are a folder of images"),
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
