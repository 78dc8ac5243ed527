"""Files of images in a folder or a zip archive: what becomes of each, layouts, and bad ones."""

import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import describe, images, load
from score_sde.data.decoding import decode
from score_sde.data.folder import of_one_size
from score_sde.errors import UserError

DRAW = np.random.default_rng(0)


def pixels(height, width, channels=3):
    return DRAW.integers(0, 256, (height, width, channels), np.uint8).squeeze()


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    """30 images from 8 x 8 to 40 x 30 in two classes, and a file that is none."""
    root = tmp_path / "photos"
    for index in range(30):
        height, width = 8 + index * 22 // 29, 8 + index * 32 // 29
        save(root / ("cat" if index % 3 else "ant") / f"{index:02d}.png", pixels(height, width))
    (root / "notes.txt").write_text("none")
    return root


def test_a_folder_with_classes(folder):
    info = describe("folder", str(folder), image_size=(12, 16))
    assert (info.shape, info.levels, info.num_classes) == ((12, 16, 3), 256, 2)
    assert info.classes == ("ant", "cat") and info.splits == {"train": 27, "test": 3}
    assert info.skipped == ("1 files .txt: hidden, or no images by their names",)
    parts = [load("folder", split, str(folder), info) for split in ("train", "test")]
    names = sorted(folder.rglob("*.png"))
    order = np.random.default_rng(0).permutation(30)
    for row, found, label in zip(
        order,
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.condition["labels"] for part in parts]),
        strict=True,
    ):
        with names[row].open("rb") as file:
            np.testing.assert_array_equal(found, decode(file, 12, 16, 3))
        assert info.classes[label] == names[row].parent.name
    grey = describe("folder", str(folder), image_size=8, channels=1)
    assert grey.shape == (8, 8, 1) and grey.digest == info.digest
    assert load("folder", "test", str(folder), grey).x.shape == (3, 8, 8, 1)


def test_a_zip_is_read_as_the_folder_in_it(folder, tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/photos/._00.png", "none")
        for each in folder.rglob("*"):  # in no order
            archive.write(each, Path("all", "photos", each.relative_to(folder)))
    ours = describe("folder", str(folder), image_size=8)
    theirs = describe("zip", str(path), image_size=8)
    assert (theirs.classes, theirs.splits) == (ours.classes, ours.splits)
    for split in ("train", "test"):
        one = load("folder", split, str(folder), ours)
        other = load("zip", split, str(path), theirs)
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.condition["labels"], other.condition["labels"])


def test_a_zip_of_other_programs(folder, tmp_path):
    """Names with a dot before them, and with the other slash."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, file in enumerate(sorted(folder.rglob("*.png"))):
            name = file.relative_to(folder).as_posix()
            archive.write(file, f"./{name}" if index % 2 else name.replace("/", "\\"))
    theirs, ours = (
        describe(kind, str(place), image_size=8)
        for kind, place in (("zip", path), ("folder", folder))
    )
    assert theirs.classes == ours.classes == ("ant", "cat")
    for split in ("train", "test"):
        left, right = (
            load("zip", split, str(path), theirs),
            load("folder", split, str(folder), ours),
        )
        np.testing.assert_array_equal(left.x, right.x)


def test_images_of_one_size_as_an_evaluation_reads_them(tmp_path):
    grey = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")  # of 16 bits
    save(tmp_path / "b.png", pixels(8, 8))
    (tmp_path / ".hidden").touch()
    (tmp_path / "folder").mkdir()
    shape, read = of_one_size(tmp_path)
    assert shape == (2, 8, 8, 3)
    first, found = [*read(1)], np.concatenate([*read(5)])
    np.testing.assert_array_equal(np.concatenate(first), found)
    np.testing.assert_array_equal(found[0, :, :, 1], np.rint(grey * (255 / 65535)))
    save(tmp_path / "c.png", pixels(8, 9))
    with pytest.raises(UserError, match=r"c\.png: is \(8, 9\); allowed is the first"):
        list(of_one_size(tmp_path)[1](5))


def test_folders_train_and_test_are_the_splits(tmp_path):
    for split, number in (("train", 3), ("test", 2)):
        for index in range(number):
            for name in "ab":
                save(tmp_path / split / name / f"{index}.jpg", pixels(8, 8))
    info = describe("folder", str(tmp_path))
    assert info.shape == (8, 8, 3) and info.splits == {"train": 6, "test": 4}
    assert info.classes == ("a", "b")
    assert load("folder", "test", str(tmp_path), info).condition["labels"].tolist() == [0, 0, 1, 1]
    save(tmp_path / "test" / "c" / "0.jpg", pixels(8, 8))
    with pytest.raises(UserError, match="no training image of the classes c"):
        describe("folder", str(tmp_path))
    (tmp_path / "test").rename(tmp_path / "valid")
    with pytest.raises(UserError, match="has the folders train, valid; allowed beside train is"):
        describe("folder", str(tmp_path))


def test_one_folder_is_no_class_and_grey_images_are_grey(tmp_path):
    for index in range(10):
        save(tmp_path / "only" / f"{index}.png", pixels(6, 4, 1))
    info = describe("folder", str(tmp_path))
    assert (info.shape, info.num_classes, info.classes) == ((6, 4, 1), 0, ())
    assert load("folder", "train", str(tmp_path), info).condition == {}
    save(tmp_path / "loose.png", pixels(6, 4, 1))
    save(tmp_path / "other" / "1.png", pixels(6, 4, 1))
    with pytest.raises(UserError, match="1 images lie beside the folders of classes only, other"):
        describe("folder", str(tmp_path))


def test_a_change_of_the_files_changes_what_a_run_keeps(folder, capsys):
    before = describe("folder", str(folder), image_size=8)
    assert describe("folder", str(folder), image_size=8) == before
    victim = folder / "ant" / "00.png"
    array = np.asarray(Image.open(victim)).copy()
    array[0, 0, 0] ^= 1
    save(victim, array)
    changed = describe("folder", str(folder), image_size=8)
    assert changed != before and changed.splits == before.splits
    # Other images than the run's may be scored; which of them were trained on is not known.
    load("folder", "test", str(folder), changed)
    assert "note" not in capsys.readouterr().err
    load("folder", "test", str(folder), before)
    assert "not the images of the run" in capsys.readouterr().err
    victim.rename(folder / "cat" / "00.png")
    assert describe("folder", str(folder), image_size=8) not in (before, changed)


# --- Bad ones -------------------------------------------------------------------------------------


def corrupt(folder) -> dict[str, str]:
    """Files that are added, and what is said of each."""
    good = (folder / "cat" / "29.png").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    files = {
        "empty.png": (b"", "0 bytes"),
        "cut.png": (good[: len(good) // 2], "truncated"),
        "flipped.png": (bytes(flipped), ""),
        "wrong.png": (b"%PDF-1.7", "no image of the formats PNG, JPEG"),
        "zero.png": (bomb(0, 5), ""),
        "bomb.png": (bomb(12_000, 12_000), "12000 x 12000 pixels; allowed are up to 33,554,432"),
        "huge.png": (bomb(60_000, 60_000), ""),
    }
    for name, (content, _) in files.items():
        (folder / "cat" / name).write_bytes(content)
    return {f"cat/{name}": words for name, (_, words) in files.items()}


def test_corrupt_files_are_listed_or_left_out(folder, capsys):
    before = describe("folder", str(folder), image_size=8)
    expected = corrupt(folder)
    with pytest.raises(UserError) as caught:
        describe("folder", str(folder), image_size=8)
    line = str(caught.value)
    assert "7 of 37 images cannot be used: " in line and "skip_corrupt=true" in line
    assert all(f"{name} (" in line and words in line for name, words in expected.items()), line
    assert "\n" not in line and " at 0x" not in line
    info = describe("folder", str(folder), image_size=8, skip_corrupt=True)
    assert "7 of 37 images cannot be used" in capsys.readouterr().err
    assert sum(info.splits.values()) == 30 and info.num_classes == before.num_classes
    assert [skipped.split(":")[0] for skipped in info.skipped[1:]] == sorted(expected)
    for split in ("train", "test"):
        part = load("folder", split, str(folder), info, skip_corrupt=True)
        assert len(part.x) == len(part.condition["labels"]) == info.splits[split]
    for index in range(12):
        (folder / "ant" / f"bad{index}.png").touch()
    with pytest.raises(UserError) as caught:
        describe("folder", str(folder), image_size=8)
    assert "19 of 49" in str(caught.value) and str(caught.value).count("(") == 10
    assert ", …; mend" in str(caught.value)


def test_names_with_what_cannot_be_printed(tmp_path, capsys):
    """A line's end, and bytes that are no UTF-8: names may have both."""
    odd = os.fsdecode(b"\xff")
    for index in range(20):
        save(tmp_path / ("a\nb" if index % 2 else odd) / f"{index}.png", pixels(8, 8))
    (tmp_path / odd / "b\nad.png").touch()
    info = describe("folder", str(tmp_path), skip_corrupt=True)
    assert info.classes == ("a\\nb", "\\udcff")
    assert [line.partition(":")[0] for line in info.skipped] == ["\\udcff/b\\nad.png"]
    [note] = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert r"\udcff/b\nad.png" in note and "left out" in note
    for stream in (False, True):
        found = load("folder", "train", str(tmp_path), info, skip_corrupt=True, stream=stream)
        assert np.asarray(found.x).shape == (18, 8, 8, 3)


def test_all_corrupt_is_too_many(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.png").write_text("no")
    with pytest.raises(UserError, match="10 of 10"):
        describe("folder", str(tmp_path))
    with pytest.raises(UserError, match="no image is left in the split"):
        describe("folder", str(tmp_path), skip_corrupt=True)


def test_bombs_take_no_memory(folder, tmp_path, run_python):
    """Of files, of members of a zip and of an array's header, all by their first bytes. The bound
    is generous: Python with numpy and Pillow takes some 60 MiB, one decoded bomb 137 or 3433."""
    corrupt(folder)
    (folder / "cat" / "giant.png").touch()
    os.truncate(folder / "cat" / "giant.png", 2**28 + 1)  # without a place on the disk
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(10):
            archive.writestr(f"{index}.png", bomb(60_000, 60_000))
    code = f"""
import re, sys
from pathlib import Path
from score_sde.data import describe
from score_sde.errors import UserError
for name, path in (("folder", {str(folder)!r}), ("zip", {str(path)!r})):
    try:
        describe(name, path, image_size=8)
    except UserError as error:
        print(error)
assert "jax" not in sys.modules
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    *lines, peak = run_python(code).stdout.splitlines()
    assert len(lines) == 2 and "8 of 38" in lines[0] and "10 of 10" in lines[1]
    assert "giant.png (268,435,457 bytes; allowed are 1 to 268,435,456)" in lines[0]
    assert int(peak) < 130 * 1024  # KiB


def test_one_large_file_is_read_at_a_time(folder, tmp_path):
    """While another is, whoever asks waits: for headers, and for pixels."""
    os.truncate(folder / "cat" / "29.png", images._LARGE + 1)  # zeros after the image
    for channels in (0, 1):  # unset, headers are read first
        reading = threading.Thread(
            target=describe,
            args=("folder", str(folder)),
            kwargs={"image_size": 8, "channels": channels},
        )
        with images._large:
            reading.start()
            reading.join(0.2)
            assert reading.is_alive()
        reading.join()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "has no images, files .png, .jpg"),
        (lambda root: [save(root / f"{i}.png", pixels(8, 8)) for i in range(9)], "9 images; at"),
        (
            lambda root: [save(root / f"{i}.png", pixels(8, 8 + i % 2)) for i in range(11)],
            r"image_size = 0: the images of .* 2 sizes, most often \(8, 8\)",
        ),
        (lambda root: (root / "gone.png").symlink_to(root / "nowhere"), "cannot read .*gone.png"),
    ],
)
def test_a_folder_that_does_not_serve(tmp_path, prepare, words):
    prepare(tmp_path)
    with pytest.raises(UserError, match=rf"^config\.data\..*{words}"):
        describe("folder", str(tmp_path))


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    for data_dir in ("", None, str(folder / "none"), str(folder / "notes.txt")):
        with pytest.raises(UserError, match="allowed is the path of a folder of images"):
            describe("folder", data_dir)
    for size in (10**6, -8, (8, 8, 8), (0, 8)):
        with pytest.raises(UserError, match=r"image_size = .* allowed are .*, up to 33,554,432 pi"):
            describe("folder", str(folder), image_size=size)
    with pytest.raises(UserError, match=r"channels = 2: allowed are 0 .*, 1 .*, 3"):
        describe("folder", str(folder), image_size=8, channels=2)
    if os.geteuid() != 0:  # who may read everything
        (folder / "ant").chmod(0)
        with pytest.raises(UserError, match=r"cannot read .*ant .*Permission denied"):
            describe("folder", str(folder), image_size=8)
        (folder / "ant").chmod(0o700)
        (folder / "ant" / "00.png").chmod(0)
        with pytest.raises(UserError, match=r"00.png cannot be read .*Permission denied"):
            describe("folder", str(folder), image_size=8)


def test_a_folder_that_changes_while_it_is_read(folder, monkeypatch):
    """By a decoder that, as it begins, has somebody else write or remove a file."""
    new, last = folder / "cat" / "new.png", folder / "cat" / "29.png"
    new.write_bytes(last.read_bytes())
    for change, words in (
        (lambda: new.write_bytes(b"other"), "its files changed while they were read"),
        (lambda: new.unlink(missing_ok=True), "new.png cannot be read|its files changed"),
    ):

        def changing(*arguments, change=change):
            change()
            return decode(*arguments)

        monkeypatch.setattr(images, "decode", changing)
        with pytest.raises(UserError, match=words):
            describe("folder", str(folder), image_size=8, skip_corrupt=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../out.png"], "'../out.png' leaves it"),
        (["/etc/out.png"], "'/etc/out.png' leaves it"),
        (["a/../../out.png"], "leaves it"),
        (["..\\out.png"], "leaves it"),
        (["C:\\out.png"], "leaves it"),
        (["one.png", "one.png"], "files of one name"),
        ([], "has no images"),
    ],
)
def test_a_zip_that_does_not_serve(tmp_path, names, words):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(names):
            archive.writestr(name, f"{index}")
    with pytest.raises(UserError, match=rf"^config\.data\.dir: {path}: .*{words}"):
        describe("zip", str(path))


def test_a_zip_that_is_damaged_or_encrypted(folder, tmp_path):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(folder.rglob("*.png")):
            archive.write(each, each.name)
    raw = path.read_bytes()
    damaged = bytearray(raw)
    damaged[raw.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"1 of 30 images cannot be used: 00.png \(Bad CRC-32"):
        describe("zip", str(path), image_size=8)
    encrypted = bytearray(raw)
    encrypted[raw.index(b"PK\x01\x02") + 8] |= 1  # a flag in the directory
    path.write_bytes(encrypted)
    with pytest.raises(UserError, match=r"'00.png' is encrypted"):
        describe("zip", str(path), image_size=8)
    for content in (raw[: len(raw) // 2], b"", b"no zip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a zip archive"):
            describe("zip", str(path))
    with pytest.raises(UserError, match=r"allowed is the path of a \.zip file"):
        describe("zip", str(folder))
