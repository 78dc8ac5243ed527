"""Trajectories as films that play in a notebook, without a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from score_sde.display import address, eight_bits, grid
from score_sde.plots.base import (
    MOST_POINTS,
    PANEL,
    Figure,
    as_clouds,
    as_images,
    as_limits,
    draw_points,
    limits_of,
    panels,
)

MOST_FRAMES = 50
COLOURS = 64  # of a frame
# Dots an inch, the best first, and how many frames are enough at each.
RESOLUTIONS = ((100, 30), (75, 20), (50, 8))
SECONDS = 4.0  # that a film takes

# The handlers find their parts from the button itself, so a page may show one film twice. A viewer
# that drops scripts shows the last frame.
_HTML = """<div>
<img src="{last}" data-frames="{frames}" style="display:block;width:{width}px;max-width:100%">
<button onclick="const box = this.parentElement, image = box.querySelector('img');
const slider = box.querySelector('input'), frames = image.dataset.frames.split(' ');
const stop = () => {{ clearInterval(box.timer); box.timer = 0; this.textContent = 'Play'; }};
const next = () => {{
  image.src = frames[++slider.value] || frames[slider.value];
  if (+slider.value >= +slider.max || !box.isConnected) stop();
}};
if (box.timer) {{ stop(); }} else {{
  if (+slider.value >= +slider.max) {{ slider.value = 0; image.src = frames[0]; }}
  this.textContent = 'Pause'; box.timer = setInterval(next, {pause});
}}">Play</button>
<input type="range" min="0" max="{most}" value="{most}" aria-label="frame" style="width:300px"
oninput="const image = this.parentElement.querySelector('img');
image.src = image.dataset.frames.split(' ')[this.value];">
</div>"""


@dataclass(frozen=True)
class Film:
    """Frames with a button that plays them and a slider.

    Attributes:
        html: all of it. It loads nothing from elsewhere.
        frames: how many.
    """

    html: str = field(repr=False)
    frames: int

    def _repr_html_(self) -> str:
        return self.html


def animation(
    trajectory: Any,
    *,
    levels: int = 256,
    limits: Any = None,
    columns: Sequence[str] = ("x", "y"),
    limit: float = 1.0,
) -> Film:
    """A trajectory as a film: points of the plane that move, or images that emerge.

    Args:
        trajectory: (frames, n, 2), or (frames, n, H, W, C) of what `images` takes; or a mapping of
            several by their titles, which play side by side, from the first frame to the last.
        levels: of images.
        limits: of points: (low, high) of both axes, or of each; by default nearly all points of
            all frames lie within.
        columns: of points: names of the axes, with their units.
        limit: the most megabytes (10^6 bytes) of HTML. A film of more gets fewer frames and fewer
            dots an inch.

    Raises:
        ValueError: other shapes, a single frame, or a film that does not fit the limit.
    """
    paths = _paths(trajectory)
    are_points = {path.ndim for path in paths.values()} == {3}
    figure, move = (
        _moving_points(paths, limits, columns) if are_points else _emerging_images(paths, levels)
    )
    for dots, enough in RESOLUTIONS:
        drawn = []
        for index in range(len(next(iter(paths.values())))):
            move(index)
            drawn.append(_png(figure, dots))
        for count in range(len(drawn), min(enough, len(drawn)) - 1, -1):
            chosen = [drawn[i] for i in np.linspace(0, len(drawn) - 1, count).round().astype(int)]
            html = _HTML.format(
                last=chosen[-1],
                frames=" ".join(chosen),
                width=round(100 * figure.get_figwidth()),
                most=count - 1,
                pause=round(1000 * SECONDS / count),
            )
            if len(html) <= 1e6 * limit:
                return Film(html, count)
    raise ValueError(
        f"limit = {limit!r}: {count} frames of {dots} dots an inch are {len(html) / 1e6:.2f} MB; "
        "allowed are more MB, fewer points or images, or fewer panels"
    )


def _paths(trajectory: Any) -> dict[str, np.ndarray]:
    """As many frames of each trajectory, evenly chosen."""
    named = trajectory if isinstance(trajectory, Mapping) else {"": trajectory}
    paths = {title: np.asarray(path) for title, path in named.items()}
    kinds = {(path.ndim, path.shape[2:]) for path in paths.values()}
    frames = [len(path) for path in paths.values() if path.ndim in (3, 5)]
    if len(kinds) != 1 or len(frames) < len(paths) or min(frames) < 2:
        allowed = "(frames, n, 2) or (frames, n, H, W, C), frames of at least 2"
        shapes = ", ".join(f"{path.shape}" for path in paths.values())
        raise ValueError(f"trajectory is {shapes}: allowed are {allowed}")
    number = min(max(frames), MOST_FRAMES)
    return {
        title: path[np.linspace(0, len(path) - 1, number).round().astype(int)]
        for title, path in paths.items()
    }


def _moving_points(
    paths: dict[str, np.ndarray], limits: Any, columns: Sequence[str]
) -> tuple[Figure, Callable[[int], None]]:
    """The figure, and what moves it to a frame."""
    every = as_clouds(
        {title: path.reshape(-1, path.shape[-1]) for title, path in paths.items()}, None, 2
    )
    figure, found = panels(list(paths), columns)
    limits = limits_of(every) if limits is None else as_limits(limits)
    clouds = []
    for axes, path in zip(found, paths.values(), strict=True):
        axes.set(xlim=limits[0], ylim=limits[1])
        clouds.append(draw_points(axes, path[0], "C0"))

    def move(frame: int) -> None:
        for cloud, path in zip(clouds, paths.values(), strict=True):
            cloud.set_offsets(path[frame][:MOST_POINTS])

    return figure, move


def _emerging_images(
    paths: dict[str, np.ndarray], levels: int
) -> tuple[Figure, Callable[[int], None]]:
    """As `_moving_points`, of grids of images."""
    # Floats are scaled by the whole film: frame by frame they would flicker.
    films = [eight_bits(path, levels) for path in paths.values()]
    sheets = [grid(as_images(film[0]), 256) for film in films]
    height, width = sheets[0].shape[:2]
    figure = Figure(PANEL * len(sheets), PANEL * height / width + 0.3 * bool(any(paths)))
    found = figure.subplots(1, len(sheets), squeeze=False)[0]
    shown = []
    for axes, title, sheet in zip(found, paths, sheets, strict=True):
        axes.set_title(title)
        axes.set_axis_off()
        shown.append(axes.imshow(sheet))

    def move(frame: int) -> None:
        for image, film in zip(shown, films, strict=True):
            image.set_data(grid(film[frame], 256))

    return figure, move


def _png(figure: Figure, dots: float) -> str:
    """The figure as it is drawn now, as the address of an image."""
    figure.set_dpi(dots)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # the places stay
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return address(image.quantize(COLOURS), optimize=True)
