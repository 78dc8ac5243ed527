"""What figures share: panels and limits, points and images."""

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from score_sde.display import eight_bits, grid

PANEL = 3.5  # inches along a side
ROW = 3  # panels beside each other, at most
WIDEST = 10.0  # inches of a grid of images
MOST_POINTS = 4000  # of a cloud, so that its density can be seen

Limits = list[tuple[float, float]]  # of each axis
Clouds = dict[str, np.ndarray]  # points (n, D) by their titles


class Figure(matplotlib.figure.Figure):
    """A figure that notebooks show without pyplot, which keeps a state."""

    def __init__(self, width: float, height: float, **settings: Any) -> None:
        """Make an empty white figure of this size in inches."""
        settings = {"layout": "constrained", "facecolor": "white"} | settings
        super().__init__(figsize=(width, height), **settings)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


class Plain(LogFormatter):
    """Labels a logarithmic axis 0.2, where matplotlib's own label is 2 × 10⁻¹."""

    def __call__(self, x: float, pos: Any = None) -> str:
        """Return the label of a tick, empty for some of the lesser ones."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def images(
    x: Any, levels: int = 256, columns: int | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """Images in a grid, magnified so that small ones can be read.

    Args:
        x: uint8 (n, H, W, C) of values 0 ... levels - 1, C 1 or 3. Of floats, the least is black
            and the largest white.
        levels: 256 for 8-bit images. What `Run.sample` returned says its own.
        columns: of the grid; by default it is nearly square.
        titles: a text above each image.

    Raises:
        ValueError: another shape, or another number of titles.
    """
    levels, x = getattr(x, "levels", None) or levels, as_images(x)
    columns = columns or math.ceil(math.sqrt(len(x)))
    above = 0  # pixels of white above each image
    if titles is not None:
        if len(titles) != len(x):
            raise ValueError(f"{len(titles)} titles: allowed are {len(x)}, one for each image")
        above = math.ceil(0.3 * x.shape[1])
        white = np.full((len(x), above, *x.shape[2:]), 255, np.uint8)
        x, levels = np.concatenate([white, eight_bits(x, levels)], axis=1), 256
    sheet = grid(x, levels, columns)
    height, width = sheet.shape[:2]
    # Pixels of the sheet in an inch: as many as notebooks show, or fewer, for an inch of title.
    inch = max(100.0 if titles is None else min(100.0, width / columns), width / WIDEST)
    figure = Figure(width / inch, height / inch, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(sheet, interpolation="antialiased" if inch > 100.0 else "nearest", aspect="auto")
    axes.set_axis_off()
    scale = width // (columns * (x.shape[2] + 1) - 1)  # of the grid
    for number, title in enumerate(titles or ()):
        row, column = divmod(number, columns)
        across = scale * (column * (x.shape[2] + 1) + 0.5 * x.shape[2])
        down = scale * (row * (x.shape[1] + 1) + 0.5 * above)
        axes.text(across, down, title, ha="center", va="center", fontsize=8)
    return figure


def as_images(x: Any) -> np.ndarray:
    """Images as an array; ValueError for another shape than (n, H, W, C) with C of 1 or 3."""
    found = np.asarray(getattr(x, "x", x))
    if found.ndim != 4 or found.shape[-1] not in (1, 3) or not len(found):
        raise ValueError(f"images are {found.shape}: allowed are (n, H, W, C), C of 1 or 3")
    return found


def as_clouds(x: Any, data: Any = None, wide: int | None = None) -> Clouds:
    """Points by their titles: the data first, then one cloud (`drawn`) or several; ValueError for
    another shape than (n, D), with D = wide if given."""
    named = x if isinstance(x, Mapping) else {"drawn": x}
    named = named if data is None else {"data": data, **named}
    clouds = {title: np.asarray(getattr(each, "x", each)) for title, each in named.items()}
    for title, points in clouds.items():
        if points.ndim != 2 or not len(points) or points.shape[1] != (wide or points.shape[1]):
            raise ValueError(f"{title}: {points.shape}: allowed are points (n, {wide or 'D'})")
    return clouds


def limits_of(clouds: Clouds) -> Limits:
    """The range of nearly all of each column, of the data where they are there, with a margin: an
    outlier does not shrink the rest."""
    points = clouds["data"] if "data" in clouds else np.concatenate(list(clouds.values()))
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    margin = np.where(high > low, 0.15 * (high - low), 0.5)
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def as_limits(limits: Any) -> Limits:
    """Limits of each of two axes, from (low, high) of both or of each."""
    (left, right), (bottom, top) = np.broadcast_to(np.asarray(limits, float), (2, 2)).tolist()
    return [(left, right), (bottom, top)]


def colours(titles: Iterable[str]) -> dict[str, str]:
    """Grey for the data; for others matplotlib's own, in turn."""
    own = (f"C{number}" for number in itertools.count())
    return {title: "0.55" if title == "data" else next(own) for title in titles}


def draw_points(axes: Axes, points: np.ndarray, colour: str) -> Any:
    """Draw points (n, 2), as many as can be told apart; return what moves them."""
    x, y = points[:MOST_POINTS].T
    return axes.scatter(x, y, s=3, color=colour, alpha=0.5, linewidths=0)


def panels(titles: Sequence[str], columns: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, in rows, all with the same two axes."""
    wide = min(len(titles), ROW)
    rows = math.ceil(len(titles) / wide)
    figure = Figure(PANEL * wide, PANEL * rows)
    grid: Any = figure.subplots(rows, wide, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
    found = list(grid.flat[: len(titles)])
    for number, (axes, title) in enumerate(zip(found, titles, strict=True)):
        is_lowest = number + wide >= len(titles)
        axes.set(title=title, xlabel=columns[0] if is_lowest else "")
        axes.set_ylabel(columns[1] if number % wide == 0 else "")
        axes.tick_params(labelbottom=is_lowest)
    return figure, found
