"""When a table of results is saved, and what is kept of others."""

import numpy as np

from score_sde.modes import results
from score_sde.modes.results import Table, saving


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
