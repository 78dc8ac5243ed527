"""Fashion-MNIST from IDX files: format, places, damage, download."""

import gzip
import hashlib
import io
import os
import struct

import numpy as np
import pytest

from score_sde.data import fashion_mnist, load
from score_sde.data.download import RemoteFile
from score_sde.data.fashion_mnist import FILES, parse_idx
from score_sde.errors import UserError

IMAGES, LABELS = (remote.name for remote in FILES["test"])


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture(scope="module")
def split():
    """Images uint8 (10000, 28, 28) and labels, and their files' contents by name."""
    images = np.zeros((10_000, 28, 28), np.uint8)
    images[:] = np.arange(10_000).reshape(-1, 1, 1) % 256
    images[:, 3, 4] = 77
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    packed = {IMAGES: gzip.compress(idx(images), 1), LABELS: gzip.compress(idx(labels), 1)}
    return images, labels, packed


@pytest.fixture
def no_system(tmp_path):
    """A system without the package."""
    return tmp_path / "no-system"


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (0, 28, 28)])
def test_idx(shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(parse_idx(io.BytesIO(idx(array)), "file"), array)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\0",  # no dimensions
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",  # floats
        b"\0\0\x08\x03\0\0\0\x01",  # header cut short
        b"\0\0\x08\x04" + bytes(16),  # rank 4
        b"\x1f\x8b\x08\0",  # packed
    ],
)
def test_foreign_idx(raw):
    with pytest.raises(UserError, match="file is not an IDX file of unsigned bytes"):
        parse_idx(io.BytesIO(raw), "file")


@pytest.mark.parametrize("change", [-1, 1])
def test_idx_of_another_length(change):
    raw = idx(np.zeros((2, 3), np.uint8)) + b"\0"
    has = "5" if change < 0 else "more"
    line = rf"file has {has} bytes of IDX data, not the 6 its header says \(shape \(2, 3\)\)"
    with pytest.raises(UserError, match=line):
        parse_idx(io.BytesIO(raw[: 18 + change]), "file")


def test_idx_that_claims_more_than_there_is():
    """The header's dimensions are not believed: their product overflows 64 bits here."""
    with pytest.raises(UserError, match="GiB; this machine has"):
        parse_idx(io.BytesIO(b"\0\0\x08\x03" + b"\xff" * 12), "file")


@pytest.mark.parametrize("unpacked", [(), (IMAGES,), (IMAGES, LABELS)])
def test_files_packed_or_not(unpacked, split, tmp_path):
    images, labels, packed = split
    write(
        tmp_path,
        {
            name.removesuffix(".gz") if name in unpacked else name: (
                gzip.decompress(content) if name in unpacked else content
            )
            for name, content in packed.items()
        },
    )
    read = load("fashion_mnist", "test", str(tmp_path))
    np.testing.assert_array_equal(read.x[..., 0], images)
    np.testing.assert_array_equal(read.condition["labels"], labels)
    assert read.x.shape == (10_000, 28, 28, 1) and read.condition["labels"].dtype == np.int32


def test_what_torchvision_downloaded_is_found_from_its_root(split, tmp_path, no_system):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.parent.mkdir()
    write(raw, split[2])
    read = fashion_mnist.load("test", str(tmp_path), system_folder=no_system)
    np.testing.assert_array_equal(read.condition["labels"], split[1])


def test_system_package_serves_where_the_folder_does_not(split, tmp_path):
    write(tmp_path / "system", split[2])
    for data_dir in (None, "", str(tmp_path / "none")):
        read = fashion_mnist.load("test", data_dir, system_folder=tmp_path / "system")
        assert (read.x[:, 3, 4, 0] == 77).all()


def test_damaged_files(split, tmp_path, no_system):
    _, labels, packed = split
    cases = {
        "cut": {IMAGES: packed[IMAGES][:-100]},
        "flipped": {IMAGES: packed[IMAGES][:5000] + bytes(100) + packed[IMAGES][5100:]},
        "foreign": {IMAGES: b"<html>"},
        "too long": {IMAGES: gzip.compress(idx(np.zeros((10_001, 28, 28), np.uint8)), 1)},
        "training's": {IMAGES: gzip.compress(idx(np.zeros((100, 28, 28), np.uint8)))},
        "labels cut": {LABELS: gzip.compress(idx(labels)[:-1])},
        "label 10": {LABELS: gzip.compress(idx(labels + np.uint8(1)))},
    }
    for case, files in cases.items():
        write(tmp_path / case, {**packed, **files})
        with pytest.raises(UserError) as caught:
            fashion_mnist.load("test", str(tmp_path / case), system_folder=no_system)
        (name,) = files
        line = str(caught.value)
        assert line.startswith(f"config.data.dir: {tmp_path / case / name} ") and "\n" not in line


def test_download(split, server, tmp_path, no_system):
    files = []
    for name, content in split[2].items():

        def behave(handler, content=content):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(content)

        url = server.serve(name, behave)
        files.append(RemoteFile(url, len(content), hashlib.sha256(content).hexdigest()))
    where = {"files": tuple(files), "system_folder": no_system}
    for _ in range(2):  # the second time from the folder
        assert len(fashion_mnist.load("test", None, **where).condition["labels"]) == 10_000
    assert server.asked == [f"/{IMAGES}", f"/{LABELS}"]
    folder = tmp_path / "cache" / "score_sde" / "fashion_mnist"
    assert sorted(os.listdir(folder)) == sorted([IMAGES, LABELS])

    # Only what is missing is fetched.
    (folder / LABELS).unlink()
    fashion_mnist.load("test", None, **where)
    assert server.asked[2:] == [f"/{LABELS}"]


def test_nothing_at_hand_ends_in_one_line_with_the_ways(tmp_path, no_system, no_preparation):
    with pytest.raises(UserError) as caught:
        fashion_mnist.load("test", str(tmp_path), system_folder=no_system)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("config.data.name: fashion_mnist is not in ")
    for word in (f"{IMAGES}: Connection refused", IMAGES, LABELS, "dataset-fashion-mnist", "tfds"):
        assert word in line
