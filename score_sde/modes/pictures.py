"""Images and vectors as pictures to look at."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from score_sde.modes.files import whole

SMALLEST = 64  # pixels of an image in a picture, at least
FRAMES = 50  # of a film
GREY = 96.0  # of the lines between images

MOST_COLUMNS = 8  # of a corner plot
MOST_POINTS = 4000  # of a scatter plot, so that its density can be seen
GRID = 64  # points along a side, where contours are drawn
MASSES = (0.95, 0.8, 0.5)  # probabilities inside the contours
DATA, DRAWN = "0.55", "tab:blue"

Clouds = dict[str, tuple[np.ndarray, str]]  # title: points and their colour
Limits = Sequence[tuple[float, float]]  # of each axis
Density = Callable[[np.ndarray], np.ndarray | None]


def grid(images: np.ndarray, levels: int, columns: int | None = None) -> np.ndarray:
    """Lay images out in a grid, magnified so that small ones can be read.

    Args:
        images: uint8 (n, H, W, C) of values 0 ... levels - 1, C 1 or 3.
        levels: 256 for 8-bit images.
        columns: of the grid; by default it is nearly square.

    Returns:
        uint8 (height, width, 3) of values 0 ... 255.
    """
    number, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    border = 1
    cells = np.full((rows * columns, height + border, width + border, channels), GREY)
    cells[:number, :height, :width] = eight_bits(images, levels)
    # (row, column, y, x, c) to (row y, column x, c), without the last border
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
    sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3))[:-border, :-border]
    scale = math.ceil(SMALLEST / height)
    return np.rint(sheet).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)


def eight_bits(images: np.ndarray, levels: int) -> np.ndarray:
    """Images of values 0 ... levels - 1 as uint8 of 0 ... 255."""
    return np.rint(images * (255.0 / (levels - 1))).astype(np.uint8)


def save_each(folder: Path, images: np.ndarray, levels: int) -> None:
    """Write each image (as `grid` takes them) by itself, as NUMBER.png in a folder."""
    for number, image in enumerate(images):
        pixels = eight_bits(image, levels)
        with whole(folder / f"{number:06d}.png") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "png")


def save_png(path: Path, images: np.ndarray, levels: int, columns: int | None = None) -> None:
    """Write a grid of images (as `grid` takes them); the folder is made where it is missing."""
    with whole(path) as file:
        Image.fromarray(grid(images, levels, columns)).save(file, format="png")


def save_gif(path: Path, film: np.ndarray, levels: int) -> None:
    """Write a film of a grid of images, from noise to what it becomes, with a rest on the last.

    Args:
        path: of the GIF.
        film: uint8 (frames, n, H, W, C).
        levels: 256 for 8-bit images.
    """
    frames = [Image.fromarray(grid(images, levels)) for images in film]
    durations = [60] * (len(frames) - 1) + [2000]  # milliseconds
    settings = {"append_images": frames[1:], "duration": durations, "loop": 0}
    with whole(path) as file:
        frames[0].save(file, format="gif", save_all=True, **settings)


def scatter(
    path: Path,
    drawn: np.ndarray | None,
    data: np.ndarray | None,
    columns: Sequence[str],
    density: Density | None = None,
) -> None:
    """Write a picture of drawn vectors, of data or of both: panels side by side for two columns,
    else a corner plot of the first eight: pairs of columns, and histograms on the diagonal.

    Args:
        path: of the PNG; the folder is made where it is missing.
        drawn: (n, D), in the data's units. None: without.
        data: (N, D). The axes are theirs: a drawn vector may lie outside. None: without.
        columns: names of the D columns.
        density: for two columns: points float32 (M, 2) to log densities (M,) in the data's units,
            or to None where there are none. Its contours hold 50, 80 and 95 % of the probability.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps a state and wants a screen

    clouds = {
        title: (points, colour)
        for title, points, colour in (("data", data, DATA), ("drawn", drawn, DRAWN))
        if points is not None
    }
    limits = [_limits(column) for column in next(iter(clouds.values()))[0].T]
    if len(columns) == 2:
        figure = Figure(figsize=(5 * len(clouds), 5), layout="constrained")
        _panels(figure, clouds, columns, limits, density)
    else:
        shown = min(len(columns), MOST_COLUMNS)
        figure = Figure(figsize=(max(4, 1.8 * shown),) * 2, layout="constrained")
        _corner(figure, clouds, columns, limits[:shown])
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=100)


def contour_levels(log_density: np.ndarray) -> np.ndarray:
    """The log densities at the edges of the smallest regions that hold `MASSES` of the probability.

    Args:
        log_density: on an even grid that holds all of the probability, any shape.

    Returns:
        (len(MASSES),), rising.
    """
    falling = np.sort(log_density.astype(np.float64), axis=None)[::-1]
    mass = np.cumsum(np.exp(falling - falling[0]))
    return falling[np.searchsorted(mass, np.asarray(MASSES) * mass[-1])]


def _limits(column: np.ndarray) -> tuple[float, float]:
    """The range of nearly all of a column, with a margin: an outlier does not shrink the rest."""
    low, high = np.percentile(column, [0.5, 99.5])
    margin = 0.15 * (high - low)
    return float(low - margin), float(high + margin)


def _panels(
    figure: Any, clouds: Clouds, columns: Sequence[str], limits: Limits, density: Density | None
) -> None:
    axes = figure.subplots(1, len(clouds), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, (points, colour)) in zip(axes, clouds.items(), strict=True):
        axis.set(xlim=limits[0], ylim=limits[1], xlabel=columns[0], title=title)
        _points(axis, points, colour)
    axes[0].set_ylabel(columns[1])
    sides = [np.linspace(*each, GRID) for each in limits]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2).astype(np.float32)
    log_density = None if density is None else density(grid)
    if log_density is None:
        return
    levels = np.unique(contour_levels(log_density))
    for axis in axes:
        style = {"colors": "black", "linewidths": 0.8, "linestyles": "solid"}
        axis.contour(*sides, log_density.reshape(GRID, GRID), levels=levels, **style)
    percents = ", ".join(f"{mass:.0%}" for mass in MASSES)
    figure.suptitle(f"contours that hold {percents} of the learned density")


def _corner(figure: Any, clouds: Clouds, columns: Sequence[str], limits: Limits) -> None:
    shown = len(limits)
    axes = figure.subplots(shown, shown, squeeze=False, sharex="col")
    for row, column in np.ndindex(shown, shown):
        axis = axes[row, column]
        if column > row:
            axis.set_axis_off()
            continue
        axis.set_xlim(limits[column])
        if column == row:
            bins = np.linspace(*limits[row], 40)
            for title, (points, colour) in clouds.items():
                filled = "step" if title == "drawn" else "bar"
                style = {"histtype": filled, "color": colour, "label": title}
                axis.hist(points[:, row], bins, density=True, **style)
            axis.set_yticks([])
        else:
            axis.set_ylim(limits[row])
            for points, colour in clouds.values():
                _points(axis, points[:, [column, row]], colour)
        if row == shown - 1:
            axis.set_xlabel(columns[column])
        if column == 0 and row:
            axis.set_ylabel(columns[row])
        elif column < row:
            axis.set_yticklabels([])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


def _points(axis: Any, points: np.ndarray, colour: str) -> None:
    x, y = points[:MOST_POINTS].T
    axis.scatter(x, y, s=3, color=colour, alpha=0.5, linewidths=0)
