"""Arrays that are read in chunks, and folders of features."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation import Rows, rows
from score_sde.evaluation.rows import of_npz, read_stored, stored
from score_sde.paths import whole
from tests.commands import small_files

X = np.arange(7 * 6, dtype=np.float32).reshape(7, 2, 3)


@pytest.fixture
def chunks_of_three(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 3)


def test_rows_come_in_chunks(chunks_of_three, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=X, y=X[:0])
    for found in (Rows.of(X), of_npz(tmp_path / "a.npz", "x")):
        assert (found.shape, len(found)) == ((7, 2, 3), 7)
        for _ in range(2):  # as often as asked for
            parts = [*found]
            assert [len(part) for part in parts] == [3, 3, 1]
            np.testing.assert_array_equal(np.concatenate(parts), X)
        np.testing.assert_array_equal(found.at(np.array([0, 4, 6])).array(), X[[0, 4, 6]])
        some = found.some(4)
        assert some.shape == (4, 2, 3)
        assert [*some.array()[:, 0, 0]] == sorted({*some.array()[:, 0, 0]})
        np.testing.assert_array_equal(found.some(9).array(), X)
        assert found.digest == Rows.of(X).digest != Rows.of(X[:, :, ::-1]).digest
    assert [*of_npz(tmp_path / "a.npz", "y")] == []


def test_large_rows_come_in_smaller_chunks(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2 * X[0].nbytes)
    assert [len(part) for part in Rows.of(X)] == [2, 2, 2, 1]


def test_a_choice_of_large_rows_has_features_too(monkeypatch, tmp_path):
    """Their chunks are as large as those of any others: a file for each."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2 * X[0].size)
    some = Rows.of(X.astype(np.uint8)).at(np.arange(1, 6))
    assert [len(part) for part in some] == [2, 2, 1]
    list(stored(tmp_path, {}, some, lambda chunk: chunk[:, 0]))
    np.testing.assert_array_equal(read_stored(tmp_path)[0].array(), X[1:6, 0])


def test_a_full_disk_is_named(tmp_path):
    said = r"000000\.npy: cannot be written \(File too large\)"
    with small_files(150), pytest.raises(UserError, match=said):  # the first file has 212 bytes
        list(stored(tmp_path, {}, Rows.of(X), lambda chunk: chunk[:, 0]))


def test_a_folder_of_features_goes_on_after_its_files(chunks_of_three, tmp_path):
    made = []

    def of(chunk):
        made.append(len(chunk))
        if len(made) == 3:
            raise KeyboardInterrupt
        return chunk[:, 0]

    folder, images = tmp_path / "features", Rows.of(X.astype(np.uint8))
    with pytest.raises(KeyboardInterrupt):
        list(stored(folder, {"set": "x"}, images, of))
    with pytest.raises(UserError, match="1 of its 3 files are missing"):
        read_stored(folder)
    assert list(stored(folder, {"set": "x"}, images, of)) == [3, 3]
    found, about = read_stored(folder)
    assert (found.shape, about) == ((7, 3), {"set": "x", "n": 7, "chunks": 3})
    np.testing.assert_array_equal(found.array(), X[:, 0])


DAMAGE = {
    "a list": ("about.json", b"[]"),
    "nested too deep": ("about.json", b"[" * 9999),
    "more files than there are": ("about.json", b'{"n": 7, "chunks": 1000000000000}'),
    "another number of rows": ("about.json", b'{"n": 8, "chunks": 3}'),
    "a file cut short": ("000001.npy", None),
    "a file of something else": ("000001.npy", b"text"),
}


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_of_features_is_one_line(name, content, chunks_of_three, tmp_path):
    list(stored(tmp_path, {}, Rows.of(X), lambda chunk: chunk[:, 0]))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(UserError, match="no folder of features") as error:
        read_stored(tmp_path)
    assert len(str(error.value)) < 250


def test_features_that_change_later_are_one_line(chunks_of_three, tmp_path):
    list(stored(tmp_path, {}, Rows.of(X), lambda chunk: chunk[:, 0]))
    found, _ = read_stored(tmp_path)
    path = tmp_path / "000001.npy"
    np.save(path, np.full((3, 3), np.nan, np.float32))
    with pytest.raises(UserError, match=r"000001\.npy is damaged \(it has values that are not"):
        found.array()
    assert list(stored(tmp_path, {}, Rows.of(X), lambda chunk: chunk[:, 0])) == [3, 1]
    np.testing.assert_array_equal(found.array(), X[:, 0])  # it was made again
    path.write_bytes(b"text")
    with pytest.raises(UserError, match=r"000001\.npy is damaged"):
        found.array()
    path.unlink()
    with pytest.raises(UserError, match=r"000001\.npy is damaged \(No such file or directory\)"):
        found.array()


def test_two_commands_fill_a_folder_at_the_same_time(chunks_of_three, tmp_path):
    """In threads, which wait for each other before each file: both write all of them."""
    together = threading.Barrier(2, timeout=60)

    def of(chunk):
        together.wait()
        return chunk[:, 0]

    def fill():
        list(stored(tmp_path, {}, Rows.of(X), of))
        return read_stored(tmp_path)[0].array()

    with ThreadPoolExecutor(2) as pool:
        for found in [pool.submit(fill) for _ in range(2)]:
            np.testing.assert_array_equal(found.result(), X[:, 0])
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}


def test_of_two_writers_of_a_file_each_writes_it_whole(tmp_path):
    path = tmp_path / "new" / "a"
    with whole(path) as first:
        first.write(b"one ")
        with whole(path) as second:
            second.write(b"two")
        assert path.read_bytes() == b"two"
        first.write(b"whole")
    assert path.read_bytes() == b"one whole" and [*path.parent.iterdir()] == [path]
