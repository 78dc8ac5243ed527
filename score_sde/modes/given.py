"""What a restoration is given: images from files, and what is measured of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from score_sde.config import refuse
from score_sde.data.decoding import SUFFIXES, CorruptImageError, decode, header
from score_sde.errors import UserError, besides
from score_sde.inverse import operators
from score_sde.inverse.base import Operator
from score_sde.paths import local
from score_sde.run import Run

MASKS = ("half", "box", "random")
MASKED, BLURRED = ("inpaint", "outpaint"), ("super_resolve", "deblur")
MEASURED = (*MASKED, "colorize", *BLURRED)
EDITED = ("edit", "relabel")
WHITE = 242  # a pixel of a mask made smaller is known if it was known in nearly all its parts


class Given(NamedTuple):
    """The images of a command.

    Attributes:
        names: of their files, without suffixes unless some are the same without.
        y: what is measured of them, or the images, in the model's units: (n, *measured).
        operator: of the measurement; None where images are edited.
        truth: the images themselves where they were degraded, uint8 (n, H, W, C); else None.
    """

    names: list[str]
    y: np.ndarray
    operator: Operator | None
    truth: np.ndarray | None


def given(
    trained: Run, source: Path, task: str, mask: str, degrade: bool, resize: bool, key: Array
) -> Given:
    """Read the images of a file or folder for a task. With `degrade` they are good ones, of which
    the measurements are made.

    Raises:
        UserError: images that cannot be read or are of another size, another mask, or a task that
            the model's images cannot have.
    """
    shape, levels, files = trained.info.shape, trained.info.levels or 256, _files(source)
    if task in EDITED:
        names, images = _read(files, levels, shape, resize)
        return Given(names, np.asarray(trained.space.to_model(jnp.asarray(images))), None, None)
    sizes = {_size(path) for path in files} if resize else set()
    operator, seen = _operator(trained.config, shape, task, mask, sizes)
    if not (degrade or resize) and seen != shape and _size(files[0]) == shape[:2]:
        wanted = f"{seen[0]} x {seen[1]} pixels, or --degrade, which makes such"
        raise UserError(f"{files[0]}: has the size of the model's images; allowed are {wanted}")
    names, images = _read(files, levels, seen if not degrade else shape, resize)
    y = _measured(trained, operator, images, task, degrade, key)
    return Given(names, y, operator, images if degrade else None)


def _operator(
    config: ConfigDict, shape: tuple[int, ...], task: str, mask: str, sizes: set[tuple[int, int]]
) -> tuple[Operator, tuple[int, ...]]:
    """The task's operator on images of a shape, and the shape of the images that are put in. A mask
    may have the size of those that are resized."""
    height, width, channels = shape
    settings = config.restore
    if task == "colorize" and channels == 1:
        without = () if config.model.class_conditional else ("relabel",)
        others = besides((*MEASURED, *EDITED), task, *without)
        allowed = f"{others}, as the model's images are grey"
        raise UserError(f"--task = 'colorize': allowed are {allowed}")
    if task == "colorize":
        return operators.colorize(), shape
    if task == "deblur":
        size = 2 * int(np.ceil(3 * settings.blur)) + 1
        return operators.deblur(operators.gaussian_kernel(settings.blur, size)), shape
    if task == "super_resolve":
        factor = settings.factor
        if height % factor or width % factor:
            raise refuse("restore.factor", factor, f"divisors of the sides {height} and {width}")
        return operators.super_resolve(factor), (height // factor, width // factor, channels)
    return operators.inpaint(jnp.asarray(_mask(mask or "half", shape, task, sizes))), shape


def _mask(mask: str, shape: tuple[int, ...], task: str, sizes: set[tuple[int, int]]) -> np.ndarray:
    """1 where a pixel is known: by a word, or where a picture is white. For outpainting, the middle
    of the image is known."""
    height, width, _ = shape
    known = np.ones((height, width))
    box = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    if task == "outpaint":
        known[:] = 0.0
        known[box] = 1.0
    elif mask == "half":
        known[:, width // 2 :] = 0.0
    elif mask == "box":
        known[box] = 0.0
    elif mask == "random":
        known = (np.random.default_rng(0).random((height, width)) < 0.5).astype(float)
    else:
        path = local(mask, "--mask")
        if not path.is_file():
            raise UserError(f"--mask = {mask!r}: allowed are {', '.join(MASKS)}, a picture's file")
        size = _size(path)
        resize = sizes == {size} != {(height, width)}
        if not resize and size != (height, width):
            raise UserError(
                f"--mask = {mask!r}: has {size[0]} x {size[1]} pixels; allowed are {height} x "
                f"{width}, or with --resize the size of the input, if all inputs have one"
            )
        white = WHITE if resize else 127
        known = (_image(path, (height, width, 1), resize)[..., 0] > white).astype(float)
        if known.min() == known.max():  # a transparent picture is white
            share = "all" if known.all() else "no"
            raise UserError(
                f"--mask = {mask!r}: {share} pixels are white (transparent ones are); allowed are "
                "pictures that are white where pixels are known, and black where not"
            )
    return known


def _files(source: Path) -> list[Path]:
    """The images' files: the one given, or those in the folder that are not hidden."""
    files = [source]
    if source.is_dir():
        files = sorted(
            path
            for path in source.iterdir()
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[:1] != "."
        )
    if not files:
        raise UserError(f"--input = '{source}': no images there")
    return files


def _read(
    files: list[Path], levels: int, shape: tuple[int, ...], resize: bool
) -> tuple[list[str], np.ndarray]:
    """The names and images of files, uint8 (n, *shape) with the model's levels."""
    images = np.stack([_image(path, shape, resize) for path in files])
    names = [path.stem for path in files]
    if len(set(names)) < len(names):  # a.png beside a.jpg
        names = [path.name for path in files]
    return names, np.rint(images * ((levels - 1) / 255)).astype(np.uint8)


def _image(path: Path, shape: tuple[int, ...], resize: bool) -> np.ndarray:
    """An image uint8 of a shape; UserError for another size, unless it may be resized."""
    height, width = _size(path)
    if (height, width) != tuple(shape[:2]) and not resize:
        raise UserError(
            f"{path}: has {height} x {width} pixels; allowed are {shape[0]} x {shape[1]}, "
            "or --resize, which takes the middle and resizes it, and a mask of the input's size"
        )
    with _readable(path), path.open("rb") as file:
        return decode(file, *shape)


def _size(path: Path) -> tuple[int, int]:
    """The height and width of an image's file."""
    with _readable(path), path.open("rb") as file:
        return header(file)[:2]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name an image that cannot be read in a UserError."""
    try:
        yield
    except (OSError, CorruptImageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: no image ({reason})") from error


def _measured(
    trained: Run, operator: Operator, images: np.ndarray, task: str, degrade: bool, key: Array
) -> np.ndarray:
    """The measurements in the model's units: of the images, or the images themselves."""
    x = trained.space.to_model(jnp.asarray(images))
    if not degrade and task in BLURRED:
        return np.asarray(x)
    y = operator(x)
    if not degrade:
        return np.asarray(y)
    noise = jax.random.normal(jax.random.fold_in(key, 2**32 - 2), y.shape)
    noise = noise if task not in MASKED else operator(noise)  # none where nothing is measured
    return np.asarray(y + trained.config.restore.sigma_y * noise)
