"""Points of the plane and vectors, densities and scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from score_sde.plots.base import (
    Clouds,
    Figure,
    Limits,
    as_clouds,
    as_limits,
    colours,
    draw_points,
    limits_of,
    panels,
)

MOST_COLUMNS = 8  # of a corner plot
GRID = 64  # points along a side, where densities are drawn
ARROWS = 16  # along a side
MASSES = (0.95, 0.8, 0.5)  # probabilities inside the contours
HOLD = f"contours hold {', '.join(f'{mass:.0%}' for mass in reversed(MASSES))} of the"
DEEPEST = 10.0  # nats below the maximum that colours can tell

Density = Callable[[np.ndarray], ArrayLike | None]
AtTimes = Callable[[np.ndarray, np.ndarray], ArrayLike]


def scatter(
    x: Any,
    data: Any = None,
    columns: Sequence[str] = ("x", "y"),
    density: Density | None = None,
    limits: Any = None,
) -> Figure:
    """Points of the plane, a panel for each cloud.

    Args:
        x: points (n, 2), or a mapping of several clouds by their titles.
        data: real points (N, 2), the first panel.
        columns: names of the axes, with their units.
        density: points float32 (M, 2) to log densities (M,), or to None where there are none. Its
            contours hold 50, 80 and 95 % of the probability.
        limits: (low, high) of both axes, or of each; by default those of the data, or else of the
            points. A point may lie outside.

    Raises:
        ValueError: points of another shape.
    """
    clouds = as_clouds(x, data, 2)
    figure, found = panels(list(clouds), columns)
    limits, colour = limits_of(clouds) if limits is None else as_limits(limits), colours(clouds)
    for axes, (title, points) in zip(found, clouds.items(), strict=True):
        axes.set(xlim=limits[0], ylim=limits[1])
        draw_points(axes, points, colour[title])
    log_density = None if density is None else _on_grid(density, limits)
    if log_density is not None:
        for axes in found:
            _draw_contours(axes, limits, log_density)
        figure.suptitle(f"{HOLD} learned density", fontsize="medium", wrap=True)
    return figure


def corner(x: Any, data: Any = None, columns: Sequence[str] | None = None) -> Figure:
    """Vectors: pairs of their columns, and the histogram of each on the diagonal.

    Args:
        x: vectors (n, D), or a mapping of several clouds by their titles. The first eight columns
            are drawn.
        data: real vectors (N, D), in grey. The axes are theirs.
        columns: names of the D columns, with their units.

    Raises:
        ValueError: vectors of another shape.
    """
    clouds = as_clouds(x, data)
    limits = limits_of(clouds)[:MOST_COLUMNS]
    shown, colour = len(limits), colours(clouds)
    columns = columns or [f"column {number}" for number in range(shown)]
    figure = Figure(max(3.5, 1.5 * shown), max(3.5, 1.5 * shown))
    grid: Any = figure.subplots(shown, shown, squeeze=False, sharex="col")
    for row, column in np.ndindex(shown, shown):
        axes: Axes = grid[row, column]
        if column > row:
            axes.set_axis_off()
            continue
        axes.set_xlim(limits[column])
        if column == row:
            _draw_histograms(axes, clouds, row, limits[row], colour)
        else:
            axes.set_ylim(limits[row])
            for title, points in clouds.items():
                draw_points(axes, points[:, [column, row]], colour[title])
        if row == shown - 1:
            axes.set_xlabel(columns[column])
        if column == 0 and row:
            axes.set_ylabel(columns[row])
        elif column < row:
            axes.set_yticklabels([])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def clouds(
    x: Any, data: Any = None, columns: Sequence[str] = ("x", "y"), density: Density | None = None
) -> Figure:
    """`scatter` of two columns, with the density if given, `corner` of others."""
    if len(columns) == 2:
        return scatter(x, data, columns, density)
    return corner(x, data, columns)


def contours(
    log_density: Density | Mapping[str, Density],
    limits: Any,
    columns: Sequence[str] = ("x", "y"),
) -> Figure:
    """Densities of the plane, a panel for each, all on one scale. Lines hold 50, 80 and 95 % of the
    probability.

    Args:
        log_density: points float32 (M, 2) to log densities (M,); or a mapping of several by their
            titles, such as the exact one and the learned one.
        limits: (low, high) of both axes, or of each. They should hold nearly all of the
            probability.
        columns: names of the axes, with their units.
    """
    densities = log_density if isinstance(log_density, Mapping) else {"": log_density}
    figure, found = panels(list(densities), columns)
    limits = as_limits(limits)
    values = [np.asarray(_on_grid(each, limits)) for each in densities.values()]
    top = max(float(np.exp(each).max()) for each in values)
    for axes, each in zip(found, values, strict=True):
        image = _draw_density(axes, limits, np.exp(each), 0.0, top)
        _draw_contours(axes, limits, each)
    figure.suptitle(f"{HOLD} probability", fontsize="medium")
    _draw_colours(figure, image, found, "density")
    return figure


def score(
    field: AtTimes,
    limits: Any,
    t: float | Sequence[float],
    log_density: AtTimes | None = None,
    columns: Sequence[str] = ("x", "y"),
) -> Figure:
    """A score function of the plane as arrows, over the log density; a panel for each time. An
    arrow's length grows as the square root of the score's, so that small ones are seen, on a scale
    of its panel.

    Args:
        field: the score function, (x float32 (M, 2), t float32 (M,)) to (M, 2). That of a `Run` is
            in the model's units.
        limits: (low, high) of both axes, or of each.
        t: the process time, or several.
        log_density: (x, t) to log densities (M,), nats.
        columns: names of the axes, with their units.
    """
    times = np.atleast_1d(np.asarray(t, np.float32))
    figure, found = panels([f"t = {time:g}" for time in times], columns)
    limits, image = as_limits(limits), None
    room = min(high - low for low, high in limits) / ARROWS  # of an arrow
    x = _grid(limits, ARROWS, inside=True)
    for axes, time in zip(found, times, strict=True):
        axes.set(xlim=limits[0], ylim=limits[1])
        if log_density is not None:
            values = np.asarray(log_density(_grid(limits, GRID), np.full(GRID**2, time)))
            # Far out it falls without end: the colours keep what is near the top.
            values = values - values.max()
            image = _draw_density(axes, limits, values, -DEEPEST, 0.0)
            image.set_alpha(0.5)  # beneath the arrows
        arrows = np.asarray(field(x, np.full(len(x), time)))
        arrows = arrows / np.sqrt(np.maximum(np.linalg.norm(arrows, axis=1, keepdims=True), 1e-12))
        longest = np.linalg.norm(arrows, axis=1).max() / room
        style: Any = {"angles": "xy", "scale_units": "xy", "pivot": "mid", "width": 0.005}
        axes.quiver(*x.T, *arrows.T, scale=longest, **style)
    if image is not None:
        _draw_colours(figure, image, found, "log density less its maximum, nats", extend="min")
    return figure


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


def _draw_histograms(
    axes: Axes, clouds: Clouds, column: int, limits: tuple[float, float], colour: dict[str, str]
) -> None:
    bins = np.linspace(*limits, 40).tolist()
    for title, points in clouds.items():
        kind: Any = "bar" if title == "data" else "step"
        style: Any = {"histtype": kind, "color": colour[title], "label": title}
        axes.hist(points[:, column], bins, density=True, **style)
    axes.set_yticks([])


def _grid(limits: Limits, number: int, *, inside: bool = False) -> np.ndarray:
    """Points of an even grid, float32 (number², 2), row by row; with `inside` none on the edge."""
    margin = 0.5 if inside else 0.0
    shares = (np.arange(number) + margin) / (number - 1 + 2 * margin)
    sides = [low + shares * (high - low) for low, high in limits]
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2).astype(np.float32)


def _on_grid(log_density: Density, limits: Limits) -> np.ndarray | None:
    found = log_density(_grid(limits, GRID))
    return None if found is None else np.asarray(found).reshape(GRID, GRID)


def _draw_density(axes: Axes, limits: Limits, values: np.ndarray, low: float, high: float) -> Any:
    style: Any = {"origin": "lower", "aspect": "auto", "cmap": "Blues", "interpolation": "bilinear"}
    style |= {"extent": (*limits[0], *limits[1]), "vmin": low, "vmax": high}
    return axes.imshow(values.reshape(GRID, GRID), **style)


def _draw_colours(figure: Figure, image: Any, found: list[Axes], label: str, **style: Any) -> None:
    """Draw the scale of the colours beside the panels; the figure becomes wider for it."""
    figure.set_figwidth(figure.get_figwidth() + 1.0)
    figure.colorbar(image, ax=found, label=label, shrink=0.8, **style)


def _draw_contours(axes: Axes, limits: Limits, log_density: np.ndarray) -> None:
    sides = [np.linspace(*each, GRID) for each in limits]
    style: Any = {"colors": "black", "linewidths": 0.8, "linestyles": "solid"}
    axes.contour(*sides, log_density, levels=np.unique(contour_levels(log_density)), **style)
