"""When a table of results is saved."""

from score_sde.modes import results
from score_sde.modes.results import Table, saving


def test_rows_that_the_file_has_are_not_saved_again(tmp_path, monkeypatch):
    """A film of a few images draws anew what is stored: the larger file stays, however long it
    takes."""
    monkeypatch.setattr(results, "SAVE_EVERY", -1.0)  # always due
    stored = Table(tmp_path / "values.npz", {"seed": 0})
    stored.add({"x": [1, 2, 3]})
    stored.save(3)

    table, written = Table(tmp_path / "values.npz", {"seed": 0}), []
    table.rows = {}
    with saving(lambda: table.changed, lambda: written.append(len(table))) as saved:
        for x in (1, 2, 3):
            table.add({"x": [x]})
            saved()
        assert written == []  # as many as there are
        table.add({"x": [4]})
        saved()
    assert written[0] == 4 and len(Table(tmp_path / "values.npz", {"seed": 0})) == 3
