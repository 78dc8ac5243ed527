"""How objects show themselves: a short text, and in a notebook a small table with thumbnails.

Nothing here sets a colour, so tables are read in light and dark themes.
"""

import base64
import html
import io
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

SMALLEST = 64  # pixels of an image in a grid, at least
GREY = 96  # of the lines between images
THUMBNAILS, COLUMNS = 24, 8  # images beside a table, at most
LONGEST = 120  # characters of a fact

Shown = TypeVar("Shown", bound=type)


def shown(cls: Shown) -> Shown:
    """Give a class a short `repr`, and a table for notebooks.

    It has a method `_facts`, which returns texts by their names, and may have `_pictures`, which
    returns the arguments of `grid`, or None.
    """

    def to_text(self: Any) -> str:
        facts = ", ".join(f"{name}: {fact}" for name, fact in self._facts().items())
        return f"{type(self).__name__}({facts})"

    def to_html(self: Any) -> str:
        pictures = self._pictures() if hasattr(self, "_pictures") else None
        return table(type(self).__name__, self._facts(), pictures)

    # mypy knows no class that a function adds methods to.
    cls.__repr__ = to_text  # type: ignore[method-assign, assignment]
    cls._repr_html_ = to_html  # type: ignore[attr-defined]
    return cls


def table(title: str, facts: Mapping[str, str], pictures: tuple[Any, ...] | None = None) -> str:
    """Facts by their names as HTML, over thumbnails of the images that `grid` gets."""
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(fact)}</td></tr>'
        for name, fact in facts.items()
    )
    image = "" if pictures is None else f'<br><img src="{_thumbnails(*pictures)}">'
    return f"<div><b>{html.escape(title)}</b><table>{rows}</table>{image}</div>"


def form(value: Any) -> str:
    """The dtype and shape of an array, such as `float32 (16, 2)`; else a short text."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return shortened(f"{value!r}")


def shortened(text: str) -> str:
    """A text as a fact: one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def own_settings(settings: Any) -> str:
    """A dataclass of settings as text, with those that are not at their defaults."""
    given = {each.name: (getattr(settings, each.name), each.default) for each in fields(settings)}
    changed = [f"{name}={value!r}" for name, (value, usual) in given.items() if value != usual]
    return f"{type(settings).__name__}({', '.join(changed)})"


def mean(values: Any) -> str:
    """The mean of numbers, with their range where they differ. Of arrays without numbers, as
    those of a function that JAX traces, the form."""
    numbers = known(values)
    if numbers is None:
        return form(values)
    low, high = numbers.min(), numbers.max()
    return f"{low:.4g}" if low == high else f"{numbers.mean():.4g} ({low:.4g} to {high:.4g})"


def mean_with_error(values: Any) -> str:
    """The mean of numbers, with its standard error where there is more than one; else as
    `mean`."""
    numbers = known(values)
    error = None if numbers is None else standard_error(numbers)
    if numbers is None or error is None:
        return mean(values)
    return f"{numbers.mean():.4g} ± {error:.2g}"


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of numbers (n,); None of a single one."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def known(values: Any) -> np.ndarray | None:
    """The numbers of an array; None where there are none."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, RuntimeError):  # not an array, traced, or deleted
        return None
    return numbers if numbers.size else None


def as_pictures(x: Any, levels: int = 256) -> tuple[Any, int] | None:
    """What is drawn beside a table: x, if it is images (n, H, W, C) that are known."""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    is_images = len(shape) == 4 and shape[-1] in (1, 3)
    return (np.asarray(x), levels) if is_images and known(x) is not None else None


def _thumbnails(images: np.ndarray, levels: int, columns: int = COLUMNS) -> str:
    """The first images as the address of a PNG."""
    from PIL import Image

    every = max(1, images.shape[1] // SMALLEST)  # large ones by some of their pixels
    images = images[:THUMBNAILS, ::every, ::every]
    sheet = grid(images, levels, min(columns, len(images)))
    return address(Image.fromarray(sheet), optimize=True)


def address(image: Any, kind: str = "png", **settings: Any) -> str:
    """An image of Pillow's, saved with these settings, as a `data:` address."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(images: np.ndarray, levels: int, columns: int | None = None) -> np.ndarray:
    """Lay images out in a grid, magnified so that small ones can be read.

    Args:
        images: (n, H, W, C), C 1 or 3; as of `eight_bits`.
        levels: 256 for 8-bit images.
        columns: of the grid; by default it is nearly square.

    Returns:
        uint8 (height, width, 3) of values 0 ... 255.
    """
    number, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    border = 1
    shape = (rows * columns, height + border, width + border, channels)
    cells = np.full(shape, GREY, np.uint8)
    cells[:number, :height, :width] = eight_bits(images, levels)
    # (row, column, y, x, c) to (row y, column x, c), without the last border
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
    sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3))[:-border, :-border]
    scale = math.ceil(SMALLEST / height)
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def eight_bits(images: np.ndarray, levels: int) -> np.ndarray:
    """Images as uint8 of 0 ... 255.

    Args:
        images: uint8 of values 0 ... levels - 1, any shape; or floats, whose least becomes black
            and whose largest white.
        levels: 256 for 8-bit images; without effect for floats.
    """
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        return np.rint((images - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)
    if levels == 256:
        return images
    return np.rint(np.arange(levels) * (255.0 / (levels - 1))).astype(np.uint8)[images]
