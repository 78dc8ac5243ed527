"""Pictures of vectors: what is written, and that contours hold the probability that they say."""

import math

import numpy as np
import pytest
from PIL import Image

from score_sde.pictures import save_scatter
from score_sde.plots.points import MASSES, contour_levels
from tests.cases import thorough

DRAW = np.random.default_rng(0)


def test_contours_hold_their_share_of_a_normal_distribution():
    """In two dimensions the region that holds the mass m has the density (1 - m) / 2 pi at its
    edge."""
    side = np.linspace(-6.0, 6.0, 241)
    x, y = np.meshgrid(side, side)
    levels = contour_levels(-0.5 * (x**2 + y**2) - math.log(2 * math.pi) + 100.0)
    exact = np.log1p(-np.asarray(MASSES)) - math.log(2 * math.pi) + 100.0
    # A ring of grid points has some 1e-2 of the mass of such a region's log density.
    np.testing.assert_allclose(levels, exact, atol=2e-2)
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("columns", [1, 2, *thorough(3, 9)])
def test_a_picture_of_vectors(tmp_path, columns):
    data = DRAW.standard_normal((300, columns)) * 10.0 ** np.arange(columns)
    asked = []

    def density(points):
        asked.append(points)
        return -0.5 * np.sum((points / [1.0, 10.0]) ** 2, axis=1)

    path, names = tmp_path / "new" / "samples.png", [f"c{i}" for i in range(columns)]
    save_scatter(path, data[:100], data, names, density if columns == 2 else None)
    with Image.open(path) as picture:
        width, height = picture.size
        assert np.asarray(picture.convert("L")).std() > 5  # not empty
    assert width == (2 * height if columns == 2 else height)
    if columns == 2:
        [points] = asked
        assert points.dtype == np.float32 and points.shape[1] == 2
        assert (points.max(0) > np.percentile(data, 99, axis=0)).all()  # the grid covers the data

    # Without data, or with data alone, one panel where there were two. The 36 panels of 9 columns,
    # of which 8 are shown, take seconds to draw: once.
    for drawn in (data[:100], {"data": data})[: {2: 2, 9: 0}.get(columns, 1)]:
        save_scatter(path, drawn, None, names)
        with Image.open(path) as picture:
            assert picture.size == (height, height)


def test_importing_the_module_does_not_import_matplotlib(run_python):
    code = "import sys, score_sde.pictures; print('matplotlib' in sys.modules)"
    assert run_python(code).stdout.strip() == "False"
