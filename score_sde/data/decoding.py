"""One file of an image as an array of a given size.

The largest part in the middle that has the target's aspect is cut out, at whole pixels: the rest is
divided by two, and rounded down at the left and the top. It is resized by Pillow's bicubic filter,
which is antialiased: its support grows with the reduction. It is the filter that agrees best
between libraries (Parmar et al. 2022, arXiv:2104.11222), and it rings less than Lanczos's. Where
nothing is to be resized, pixels stay as they are.

The turn that EXIF asks for is made first. Transparent pixels lie over white. Of an animation the
first frame is taken. 16 grey bits are rounded to 8; of 16 bits for each colour Pillow keeps the
upper 8. Colours become grey by Pillow's luma (ITU-R 601-2).
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO

import numpy as np

from score_sde.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Beyond most cameras' images, and below what fills the memory. A header says it before pixels are
# read.
MOST_PIXELS = 2**25
_ROOM = 20 * MOST_PIXELS  # bytes that all images take which are decoded at the same time
# Bytes that Pillow takes at a time. Beyond 32 MiB glibc gives them back as soon as they are free.
# Of Pillow's own 16 MiB each thread would keep as many as its largest image took.
_BLOCK = 2**26
_BAND = 2**20  # pixels whose mode is changed at a time
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap the sides
_ORIENTATION = 0x0112


class CorruptImageError(Exception):
    """A file that is no image to be used: why, in a few words."""


def header(file: BinaryIO) -> tuple[int, int, bool]:
    """The height and width of an image as it is seen, and whether it is grey.

    Raises:
      CorruptImageError: the file is no image, or too large a one.
    """
    from PIL import Image

    try:
        with _opened(file) as image:
            width, height = image.size
            # PNG's own method reads all pixels, for EXIF that stands after them.
            if Image.Image.getexif(image).get(_ORIENTATION) in _TRANSPOSED:
                width, height = height, width
            return height, width, image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
    except Exception as error:  # what the decoders raise of foreign bytes has no list
        raise _corrupt(error) from error


def decode(file: BinaryIO, height: int, width: int, channels: int, middle: int = 0) -> np.ndarray:
    """The image, uint8 (height, width, channels) of values 0 to 255.

    Args:
      file: opened for reading.
      height, width: of the result.
      channels: of the result: 1 for grey, 3 for red, green and blue.
      middle: pixels of a square in the middle that is cut out first, and then resized by a bilinear
        filter; 0: none.

    Raises:
      CorruptImageError: the file is no image, too large a one, damaged, or has pixels of 32 bits.
    """
    try:
        image = _opened(file)
        needed = min(_bytes(image), _ROOM)
        if image.width * image.height > MOST_PIXELS:  # a JPEG, whose decoder halves the sides
            image.draft(None, (image.width // 2, image.height // 2))
        with _room(needed), closing(image):  # which frees its pixels
            return _decoded(image, height, width, channels, middle)
    except Exception as error:  # what the decoders raise of foreign bytes has no list
        raise _corrupt(error) from error


def _decoded(image: Any, height: int, width: int, channels: int, middle: int) -> np.ndarray:
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if middle:
        image = _middle(image, middle, middle)
    scale = min(image.width / width, image.height / height)
    image = _middle(image, *(max(1, round(side * scale)) for side in (height, width)))
    by = Image.Resampling.BILINEAR if middle else Image.Resampling.BICUBIC
    image = _plain(image, channels).resize((width, height), by)
    return np.asarray(image).reshape(height, width, channels)


def _opened(file: BinaryIO) -> Any:
    """The image with its header read; the ValueError of one that is too large."""
    from PIL import Image

    Image.core.set_block_size(_BLOCK)
    image = Image.open(file, formats=FORMATS)
    most = MOST_PIXELS * (2 if _is_baseline(image) else 1)
    if image.width * image.height > most:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels; allowed are up to {most:,}")
    return image


def _bytes(image: Any) -> int:
    """What an image takes while it is decoded: measured, and rounded up. WebP without loss takes
    19.6 for each pixel, progressive JPEG of four channels 12.0, another turned by EXIF 8.0."""
    each = 20 if image.format == "WEBP" else 8 if _is_baseline(image) else 12
    return each * image.width * image.height


def _is_baseline(image: Any) -> bool:
    """Whether it is a JPEG that is decoded line by line, as cameras write it; MPO is of phones."""
    return image.format in ("JPEG", "MPO") and "progressive" not in image.info


_free = _ROOM
_freed = threading.Condition()


@contextmanager
def _room(needed: int) -> Iterator[None]:
    """Waits until so many bytes are free beside what other threads decode."""
    global _free
    with _freed:
        _freed.wait_for(lambda: needed <= _free)
        _free -= needed
    try:
        yield
    finally:
        with _freed:
            _free += needed
            _freed.notify_all()


def _middle(image: Any, height: int, width: int) -> Any:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    whole = (width, height) == image.size
    return image if whole else image.crop((left, top, left + width, top + height))


def _plain(image: Any, channels: int) -> Any:
    """The image with 8 bits a channel, grey or in colours, without transparency."""
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits; allowed are 8 and 16")
    if image.mode == mode and not image.has_transparency_data:
        return image
    found = Image.new(mode, image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):  # what lies between takes several times the room
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if band.mode.startswith("I;16"):
            grey = (np.asarray(band).astype(np.uint32) * 255 + 32767) // 65535
            band = Image.fromarray(grey.astype(np.uint8))
        if image.has_transparency_data:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
        found.paste(band.convert(mode), (0, top))
    return found


def _corrupt(error: Exception) -> CorruptImageError:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # it names an object in the memory
        return CorruptImageError(f"no image of the formats {', '.join(FORMATS)}")
    return CorruptImageError(one_line(error)[:100] or type(error).__name__)
