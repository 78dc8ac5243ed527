"""CIFAR-10 from the official files: layouts, damage, archives, and the real set where it is."""

import dataclasses
import hashlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from score_sde.data import cifar10, load
from score_sde.data.cifar10 import ARCHIVE, BATCH_BYTES, parse_binary, unpack
from score_sde.data.download import RemoteFile
from score_sde.errors import UserError

NAMES = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


def records(count, seed):
    """Bytes of `count` records: labels row mod 10, pixels that tell row and file apart."""
    rows = np.zeros((count, 3073), np.uint8)
    rows[:, 0] = np.arange(count) % 10
    rows[:, 1:] = (np.arange(count)[:, None] // 10 + seed) % 256
    return rows.tobytes()


@pytest.fixture(scope="module")
def batch():
    """A file of the official size."""
    return records(10_000, seed=5)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, batch):
    """An archive as the official one, six times the same batch, and what is known of it."""
    path = tmp_path_factory.mktemp("archive") / ARCHIVE.name
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, "cifar-10-batches-bin/readme.html", b"<html>")
        for name in NAMES:
            add(tar, f"cifar-10-batches-bin/{name}", batch)
    raw = path.read_bytes()
    return path, RemoteFile(ARCHIVE.url, len(raw), hashlib.sha256(raw).hexdigest())


def add(tar, name, content=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def test_records_become_images():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (3, 3073)).astype(np.uint8)
    rows[:, 0] = [9, 0, 4]
    images, labels = parse_binary(rows.tobytes(), "batch")
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    assert labels.tolist() == [9, 0, 4] and labels.dtype == np.int32
    for n, y, x, c in [(0, 0, 0, 0), (1, 31, 30, 2), (2, 7, 9, 1)]:
        assert images[n, y, x, c] == rows[n, 1 + 1024 * c + 32 * y + x]


def test_incomplete_record_and_wrong_label():
    with pytest.raises(UserError, match="batch has 3072 bytes, no whole number of records of 3073"):
        parse_binary(bytes(3072), "batch")
    with pytest.raises(UserError, match="batch has a label that is not in 0 … 9"):
        parse_binary(b"\x0a" + bytes(3072), "batch")


@pytest.mark.parametrize("subfolder", ["cifar-10-batches-bin", "."])
def test_binary_files_in_either_place(subfolder, batch, tmp_path):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    (tmp_path / subfolder / "test_batch.bin").write_bytes(batch)
    images, condition = load("cifar10", "test", str(tmp_path))
    labels = condition["labels"]
    assert images.shape == (10_000, 32, 32, 3) and labels.shape == (10_000,)
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (images[25] == 2 + 5).all()


def test_training_batches_come_in_order(batch, tmp_path):
    for k, name in enumerate(NAMES[:5]):
        if k in (0, 3):
            (tmp_path / name).write_bytes(records(10_000, seed=10 * k))
        elif k == 1:
            (tmp_path / name).write_bytes(batch)
        else:
            os.link(tmp_path / NAMES[1], tmp_path / name)  # 30 MB less to write
    images = load("cifar10", "train", str(tmp_path)).x
    assert images.shape == (50_000, 32, 32, 3)
    assert images[::10_000, 0, 0, 0].tolist() == [0, 5, 5, 30, 5]


def test_missing_file_among_its_fellows(batch, tmp_path):
    (tmp_path / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load("cifar10", "train", str(tmp_path))
    assert str(caught.value) == (
        f"config.data.dir: {tmp_path}/data_batch_1.bin is missing; expected are all of "
        "data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, data_batch_5.bin"
    )


@pytest.mark.parametrize(
    "name, size", [("test_batch.bin", BATCH_BYTES - 1), ("test_batch", 4e7 + 1)]
)
def test_file_of_another_size(name, size, tmp_path):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, int(size))
    with pytest.raises(UserError) as caught:
        load("cifar10", "test", str(tmp_path))
    assert str(caught.value).startswith(f"config.data.dir: {tmp_path}/{name} has {int(size)} bytes")


def test_pickle_with_a_program_is_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"test_batch is refused: it wants to import os\.system"):
        load("cifar10", "test", str(tmp_path))


def test_archive_at_hand_is_unpacked_and_kept(archive, tmp_path):
    path, facts = archive
    shutil.copy(path, tmp_path)
    labels = cifar10.load("test", str(tmp_path), archive=facts).condition["labels"]
    assert labels[9] == 9
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "cifar-10-batches-bin"])
    assert sorted(os.listdir(tmp_path / "cifar-10-batches-bin")) == NAMES


def test_archive_at_hand_that_is_not_the_official_one(tmp_path):
    (tmp_path / ARCHIVE.name).write_bytes(b"half")
    with pytest.raises(UserError, match="has 4 bytes, not the 170052171 of the official file"):
        load("cifar10", "test", str(tmp_path))


def test_archive_is_downloaded_once(archive, server, tmp_path):
    path, facts = archive

    def behave(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(facts.size))
        handler.end_headers()
        handler.wfile.write(path.read_bytes())

    facts = dataclasses.replace(facts, url=server.serve(path.name, behave))
    for _ in range(2):
        assert len(cifar10.load("test", archive=facts).condition["labels"]) == 10_000
    assert server.asked == [f"/{path.name}"]
    # The folder of the default: only what was unpacked stays.
    assert os.listdir(tmp_path / "cache" / "score_sde" / "cifar10") == ["cifar-10-batches-bin"]


def test_nothing_at_hand_ends_in_one_line_with_the_ways(tmp_path, no_preparation):
    """By the default address, through a proxy that refuses."""
    with pytest.raises(UserError) as caught:
        load("cifar10", "train", str(tmp_path / "none"))
    line = str(caught.value)
    assert "\n" not in line and line.startswith("config.data.name: cifar10 is not in ")
    for word in (
        "cifar-10-binary.tar.gz: Connection refused",
        "config.data.dir",
        "cifar-10-batches-bin/",
        "cifar-10-batches-py/",
        "score-sde[tfds]",
        "config.data.name=digits",
    ):
        assert word in line
    assert not (tmp_path / "none").exists()


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot read the folder .*/file: Not a directory"):
        load("cifar10", "train", str(tmp_path / "file"))


def test_hostile_members_have_no_effect(batch, tmp_path):
    """Paths that climb, links in place of files and wrong sizes: none of it is written."""
    path, folder = tmp_path / "a.tar.gz", tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, "../evil", b"x")
        add(tar, f"{tmp_path}/absolute", b"x")
        add(tar, "cifar-10-batches-bin/../../data_batch_1.bin", batch)
        add(
            tar,
            "cifar-10-batches-bin/data_batch_2.bin",
            type=tarfile.SYMTYPE,
            linkname="/etc/passwd",
        )
        add(tar, "cifar-10-batches-bin/data_batch_3.bin", type=tarfile.LNKTYPE, linkname="../evil")
        add(tar, "cifar-10-batches-bin/data_batch_4.bin", b"short")
        add(tar, "cifar-10-batches-bin/data_batch_5.bin", type=tarfile.FIFOTYPE)
        add(tar, "cifar-10-batches-bin/test_batch.bin", batch, mode=0o4777)
    with pytest.raises(UserError, match=r"lacks (data_batch_[1-5]\.bin(, )?){5}$"):
        unpack(path, folder)
    assert os.listdir(folder) == []
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "deep"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_damaged_archive(damage, archive, tmp_path):
    raw = bytearray(archive[0].read_bytes())
    if damage == "cut":
        del raw[len(raw) // 2 :]
    elif damage == "flipped":
        raw[len(raw) // 2 : len(raw) // 2 + 64] = bytes(64)
    else:
        raw[:] = b"<html>not found</html>"
    (tmp_path / "a.tar.gz").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.tar\.gz"):
        unpack(tmp_path / "a.tar.gz", tmp_path)
    assert os.listdir(tmp_path) == ["a.tar.gz"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared copy of CIFAR-10")
def test_the_real_set(tmp_path):
    """Facts published with it: counts, class counts and channel means to 1e-4."""
    script = SHARED / "unpack_cifar10.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    train, test = load("cifar10", "train", str(tmp_path)), load("cifar10", "test", str(tmp_path))
    assert np.bincount(train.condition["labels"]).tolist() == [5000] * 10
    assert np.bincount(test.condition["labels"]).tolist() == [1000] * 10
    means = train.x.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(means, [0.49140, 0.48216, 0.44653], atol=1e-4)
    deviations = train.x.std(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(deviations, [0.24703, 0.24349, 0.26159], atol=1e-4)
    # Pixel by pixel against an independent reader of the same images.
    images, labels = runpy.run_path(str(script))["read_batch"]("data_batch_2")
    np.testing.assert_array_equal(train.x[10_000:20_000], images)
    np.testing.assert_array_equal(train.condition["labels"][10_000:20_000], labels)
