"""The Python of the README and of docs/, as it stands there."""

import re

import numpy as np
import pytest

import score_sde
from tests.commands import ROOT

NEEDS_A_RUN = "score_sde.load("


def blocks(page: str) -> list[str]:
    """The Python of a page. What needs a trained run is compiled alone."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    for block in found:
        compile(block, page, "exec")
    return [block for block in found if NEEDS_A_RUN not in block]


def names_of(page: str) -> dict:
    """What a page's Python leaves behind."""
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_parts_work_alone_as_the_readme_says():
    names = names_of("README.md")
    assert names["drawn"].x.shape == (100, 2)
    # log p of draws from a Gaussian of variance 0.1 in two dimensions is log(1 / (0.2 pi)) less a
    # chi square / 2 of two degrees, whose mean over 100 scatters by 0.1.
    assert abs(names["found"].log_prob.mean() + np.log(0.2 * np.pi) + 1.0) < 0.4
    assert issubclass(names["Cosine"], score_sde.SDE)
    names["Cosine"]().check()


@pytest.mark.thorough  # its dozen programs compile for a minute
def test_the_page_on_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it trains a run
    names = names_of("docs/python.md")
    assert names["drawn"].x.shape == (1000, 2) and names["shares"][-1] == 1.0
    # What it says of both: within 1e-3 nats a dimension, and the prior's own mismatch.
    error = {
        name: np.abs(names[name].log_prob - names["exact"]).max() for name in ("data", "model")
    }
    assert error["data"] < 2e-3 < error["model"] < 2e-2
    assert np.isfinite(names["x"]).all() and np.isfinite(names["by_beta"])


@pytest.mark.thorough
def test_the_other_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # vectors.md writes a file
    assert len(blocks("docs/vectors.md")) == 1
    names_of("docs/vectors.md")
    from score_sde import data

    assert data.describe("npz", "mine.npz", condition=("y",)).columns == ("a", "b")
    names = names_of("docs/control.md")
    # 100 draws of standard deviations 0.1 and 0.45.
    np.testing.assert_allclose(names["drawn"].x.mean(axis=0), (1.49, 1.34), atol=4 * 0.045)
    assert names["repainted"].nfe[0] == 501 and names["original"].nfe[0] == 100
    # Along (1, 1) the standard deviation falls by sqrt(19), along (1, -1) it rises by that, up to
    # sigma(t_min)^2 = 1e-4 beside the smaller variance of 0.1.
    small, large = 0.5 / np.sqrt(19), 1.5 * np.sqrt(19)
    np.testing.assert_allclose(names["other"].x, [[small + large, small - large]], rtol=1e-3)
    assert names_of("docs/configuration.md")["get_config"]().model.width == 32


@pytest.mark.parametrize(
    "page",
    sorted(
        [
            "README.md",
            "CONTRIBUTING.md",
            *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
        ]
    ),
)
def test_links_lead_somewhere(page):
    """Every relative link names a file, and its anchor a heading of that file."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M) if anchor else []
        # As GitHub makes them: punctuation is dropped.
        anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in anchors, target
