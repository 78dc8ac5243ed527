"""Images as pictures to look at."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from score_sde.modes.files import whole

SMALLEST = 64  # pixels of an image in a picture, at least
FRAMES = 50  # of a film
GREY = 96.0  # of the lines between images


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
    cells[:number, :height, :width] = images * (255.0 / (levels - 1))
    # (row, column, y, x, c) to (row y, column x, c), without the last border
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
    sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3))[:-border, :-border]
    scale = math.ceil(SMALLEST / height)
    return np.rint(sheet).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)


def save_png(path: Path, images: np.ndarray, levels: int, columns: int | None = None) -> None:
    """Write a grid of images (as `grid` takes them); the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
