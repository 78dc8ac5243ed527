"""Arrays that are read in chunks, and folders of features."""

import os

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation import Rows, rows
from score_sde.evaluation.rows import of_npz, read_stored, stored

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
        np.testing.assert_array_equal(
            np.concatenate([*found.at(np.array([0, 4, 6]))]), X[[0, 4, 6]]
        )
        some = found.some(4)
        assert [*some[:, 0, 0]] == sorted({*some[:, 0, 0]}) and len(some) == 4
        np.testing.assert_array_equal(found.some(9), X)
        assert found.digest() == Rows.of(X).digest() != Rows.of(X[:, :, ::-1]).digest()
    assert [*of_npz(tmp_path / "a.npz", "y")] == []


def test_large_rows_come_in_smaller_chunks(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2 * X[0].nbytes)
    assert [len(part) for part in Rows.of(X)] == [2, 2, 2, 1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file whose disk is always full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "000000.npy.partial").symlink_to("/dev/full")
    said = r"000000\.npy: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=said):
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
    with pytest.raises(UserError, match=r"1 files are missing, such as 000002\.npy"):
        read_stored(folder)
    assert list(stored(folder, {"set": "x"}, images, of)) == [3, 3]
    found, about = read_stored(folder)
    assert (found.shape, about) == ((7, 3), {"set": "x", "n": 7, "chunks": 3})
    np.testing.assert_array_equal(np.concatenate([*found]), X[:, 0])
    (folder / "about.json").write_text("[]")
    with pytest.raises(UserError, match="no folder of features"):
        read_stored(folder)
