"""Images and vectors as files to look at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from score_sde.display import eight_bits, grid
from score_sde.paths import whole

FRAMES = 50  # of a film


def save_each(folder: Path, images: np.ndarray, levels: int) -> None:
    """Write each image (as `grid` takes them) by itself, as NUMBER.png in a folder."""
    for number, image in enumerate(images):
        pixels = eight_bits(image, levels)
        with whole(folder / f"{number:06d}.png") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "png")


def save_png(
    path: Path, images: np.ndarray, levels: int, columns: int | None = None, *, keep: bool = False
) -> None:
    """Write a grid of images (as `grid` takes them), as `whole` does."""
    with whole(path, keep=keep) as file:
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
    number = f"{film.shape[1]}".encode()
    with whole(path) as file:
        frames[0].save(file, format="gif", save_all=True, comment=number, **settings)


def images_in_gif(path: Path) -> int:
    """How many images the film at a path shows; 0 where there is none by `save_gif`."""
    try:
        with path.open("rb") as file, Image.open(file) as film:
            return int(film.info["comment"])
    except (OSError, KeyError, ValueError):
        return 0


def save_scatter(
    path: Path,
    drawn: np.ndarray | Mapping[str, np.ndarray],
    data: np.ndarray | None,
    columns: Sequence[str],
    density: Callable[[np.ndarray], np.ndarray | None] | None = None,
    *,
    keep: bool = False,
) -> None:
    """Write a picture of drawn vectors and of data (`plots.clouds`), as `whole` does.

    Args:
        path: of the PNG.
        drawn: (n, D), in the data's units, or several such clouds by their titles.
        data: (N, D); None: without.
        columns: names of the D columns.
        density: as `plots.scatter` takes it; for two columns.
        keep: as of `whole`.
    """
    from score_sde import plots  # which imports matplotlib

    figure = plots.clouds(drawn, data, columns, density)
    with whole(path, keep=keep) as file:
        figure.savefig(file, format="png", dpi=150)
