"""Notebooks: what is saved, that the reduced form runs (thorough) and that the figures come out
(slow)."""

import copy

import pytest

from score_sde.data import DATASETS
from score_sde.networks import NETWORKS
from score_sde.plots import films, points
from score_sde.processes import PROCESSES
from score_sde.samplers import CORRECTORS, PREDICTORS, SAMPLERS
from tests import notebooks
from tests.commands import as_users_have_it

FILES = pytest.mark.parametrize("path", notebooks.FILES, ids=lambda path: path.stem)


@FILES
def test_a_saved_notebook_is_fit_to_be_read(path):
    saved = notebooks.read(path)
    assert not notebooks.problems(saved)
    assert notebooks.figures(notebooks.text(saved))
    assert path.read_text(encoding="utf-8") == notebooks.dumps(saved)


@pytest.fixture
def tables_as_they_were():
    """A notebook adds its own parts to the package's tables; other tests shall not find them."""
    tables = (PROCESSES, SAMPLERS, PREDICTORS, CORRECTORS, NETWORKS, DATASETS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@FILES
@pytest.mark.thorough
def test_the_reduced_form_runs(path, tmp_path, monkeypatch, capsys, tables_as_they_were):
    """Its figures are others, but the same are there."""
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(points, "GRID", 12)  # densities at 144 points in place of 4096
    monkeypatch.setattr(films, "MOST_FRAMES", 3)
    saved = notebooks.read(path)
    with as_users_have_it():
        notebooks.run_quickly(saved, path.name)
    said, expected = capsys.readouterr().out, notebooks.text(saved)
    assert notebooks.figures(said).keys() == notebooks.figures(expected).keys()


@FILES
@pytest.mark.slow  # whole notebooks
@pytest.mark.timeout(1800)
def test_the_figures_come_out_again(path, tmp_path):
    pytest.importorskip("nbclient", reason="`make test-notebooks` installs it")
    saved = notebooks.read(path)
    new = notebooks.executed(saved, tmp_path)
    assert not notebooks.differences(notebooks.text(saved), notebooks.text(new))
    assert not notebooks.problems(new)


GOOD = {
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
        {
            "cell_type": "code",
            "execution_count": 1,
            "id": "b",
            "metadata": {},
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["figure: e = 0.5 ± 0.1\n"]}
            ],
            "source": ["import jax.numpy as jnp\n", "\n", "QUICK = False\n", "print(jnp)"],
        },
    ],
    "metadata": notebooks.METADATA,
    "nbformat": 4,
    "nbformat_minor": 5,
}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [text]}


def html(text):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": [text]}}


def test_a_notebook_that_is_fit():
    picture = html('<img src="data:image/png;base64,' + "iVBO/tmp/" * 20 + '">')
    GOOD_TOO = copy.deepcopy(GOOD)
    GOOD_TOO["cells"][1]["outputs"].append(picture)
    assert not notebooks.problems(GOOD) and not notebooks.problems(GOOD_TOO)
    assert notebooks.figures(notebooks.text(GOOD)) == {"e": (0.5, 0.1)}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (stream("saved in /home/me/runs"), "a path"),
        (html("<p>/tmp/ab</p>"), "a path"),
        (stream("x.py:3: UserWarning: no", "stderr"), "stderr"),
        (stream("UserWarning: no"), "a warning"),
        (stream("Traceback (most recent call last):"), "a traceback"),
        ({"output_type": "error", "ename": "E", "evalue": "", "traceback": ["E"]}, "error"),
        (stream("<function f at 0x7f12ab34cd56>"), "an address"),
        (html("x" * 1_500_000), "bytes"),
    ],
)
def test_outputs_that_are_refused(output, expected):
    bad = copy.deepcopy(GOOD)
    bad["cells"][1]["outputs"].append(output)
    assert any(expected in problem for problem in notebooks.problems(bad))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source": ["QUICK = False\n", "from torch import nn"]}, "torch"),
        ({"source": ["import jax"]}, "QUICK"),
        ({"execution_count": 7}, "top to bottom"),
        ({"metadata": {"execution": {}}}, "metadata"),
    ],
)
def test_cells_that_are_refused(change, expected):
    bad = copy.deepcopy(GOOD)
    bad["cells"][1].update(change)
    [problem] = notebooks.problems(bad)
    assert expected in problem


def test_figures_that_differ():
    saved = "figure: a b = 1.0 ± 0.1\nfigure: c = 2.0 ± 0.5\n"
    assert not notebooks.differences(saved, "figure: a b = 1.09 ± 0.1\nfigure: c = 2.4 ± 0.5\n")
    [moved] = notebooks.differences(saved, "figure: a b = 1.2 ± 0.1\nfigure: c = 2.0 ± 0.5\n")
    assert "a b" in moved and "1.2" in moved
    assert notebooks.differences(saved, "figure: a b = 1.0 ± 0.1\nfigure: c = nan ± 0.5\n")
    assert notebooks.differences(saved, "figure: a b = 1.0 ± 0.1\n") == [
        "c: in one of the two only"
    ]
