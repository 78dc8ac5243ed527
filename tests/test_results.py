"""When a table of results is saved, and what is kept of others."""

import json

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.modes import results
from score_sde.modes.results import Table, check_room, saving
from tests.commands import small_files


def test_rows_that_the_file_has_are_not_saved_again(tmp_path, monkeypatch):
    """A film of a few images draws anew what is stored: the larger file stays, however long it
    takes."""
    monkeypatch.setattr(results, "SAVE_EVERY", -1.0)  # always due
    stored = Table(tmp_path / "values.npz", {"seed": 0}, 3)
    stored.add({"x": [1, 2, 3]})
    stored.save()

    table, written = Table(tmp_path / "values.npz", {"seed": 0}, 3), []
    table.rows = {}
    with saving(lambda: table.changed, lambda: written.append(len(table))) as saved:
        for x in (1, 2, 3):
            table.add({"x": [x]})
            saved()
        assert written == []  # as many as there are
        table.add({"x": [4]})
        saved()
    assert written[0] == 4 and len(Table(tmp_path / "values.npz", {"seed": 0}, 3)) == 3


def test_nothing_of_other_settings_is_replaced(tmp_path):
    """Nor what was set aside before, nor pictures whose table is gone."""
    names, contents = ("values.png", "each"), []

    def kept(seed):
        table = Table(tmp_path / "values.npz", {"seed": seed}, 1, beside=names)
        table.add({"x": [seed]})
        table.save()
        (tmp_path / "values.png").write_text(f"{seed}")
        (tmp_path / "each").mkdir(exist_ok=True)
        (tmp_path / "each" / f"{seed}.png").touch()
        contents.append(sorted(f"{p.relative_to(tmp_path)}" for p in tmp_path.rglob("*")))

    for seed in (0, 1, 2):
        kept(seed)
    (tmp_path / "values.npz").unlink()
    kept(2)
    for number, seed in (("", 0), ("2", 1), ("3", 2), ("", 2)):
        old = f".old{number}" if (number, seed) != ("", 2) else ""
        assert (tmp_path / f"values{old}.png").read_text() == f"{seed}"
        assert [p.name for p in (tmp_path / f"each{old}").iterdir()] == [f"{seed}.png"]
        if number != "3":  # whose table was gone
            assert np.load(tmp_path / f"values{old}.npz")["x"] == [seed]
    assert not (tmp_path / "values.old3.npz").exists()


def test_large_arrays_lie_in_a_file(tmp_path, monkeypatch):
    """And are saved, continued and shortened as others are; nothing is left beside the table."""
    monkeypatch.setattr(results, "IN_MEMORY", 0)
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 2), np.uint8)

    def table(wanted):
        return Table(tmp_path / "a.npz", {"seed": 0}, wanted, large={"x": ((3, 2), np.uint8)})

    first = table(4)
    first.add({"x": x[:1], "nfe": [7]})
    first.add({"x": x[1:3], "nfe": [7, 7]})
    assert isinstance(first.rows["x"], np.memmap) and not isinstance(first.rows["nfe"], np.memmap)
    first.save()
    again = table(5)
    np.testing.assert_array_equal(again.rows["x"], x[:3])
    again.add({"x": x[3:], "nfe": [7, 7]})
    assert isinstance(again.rows["x"], np.memmap) and again.changed
    again.save()
    np.testing.assert_array_equal(table(2).rows["x"], x)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_what_has_no_room_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "IN_MEMORY", 1000)
    path = tmp_path / "new" / "a.npz"
    check_room(path, 1001)
    with small_files(1500):
        check_room(path, 1500)
        for begin in (
            lambda: check_room(path, 1501),
            lambda: Table(path, {}, 51, large={"x": ((10, 3), np.uint8)}),
        ):
            with pytest.raises(UserError, match=r"a\.npz: cannot be written \(File too large\)"):
                begin()
    assert [*path.parent.iterdir()] == []


def test_a_table_says_what_computed_its_rows(tmp_path, monkeypatch):
    """The devices and versions of each command that added some; not of one that only reads."""

    def made_by(device, *rows):
        there = results.circumstances() | {"device": device}
        monkeypatch.setattr(results, "circumstances", lambda: there)
        table = Table(tmp_path / "a.npz", {}, 3)
        if rows:
            table.add({"x": rows})
            table.save()
        with np.load(tmp_path / "a.npz") as file:
            return [each["device"] for each in json.loads(str(file["made_by"]))]

    assert made_by("one", 1) == ["one"]
    assert made_by("two") == ["one"]
    assert made_by("one", 2) == ["one"]
    assert made_by("two", 3) == ["one", "two"]
    found = results.circumstances()
    assert found["num_devices"] >= 1
    assert {"jax", "numpy", "pillow", "python", "score_sde"} <= found["versions"].keys()
