"""One file of an image as an array of a given size.

The largest part in the middle that has the target's aspect is cut out, and resized by Pillow's
bicubic filter, which is antialiased: its support grows with the reduction. It is the filter that
agrees best between libraries (Parmar et al. 2022, arXiv:2104.11222), and it rings less than
Lanczos's. Where nothing is to be resized, pixels stay as they are.

The turn that EXIF asks for is made first. Transparent pixels lie over white. Of an animation the
first frame is taken. 16 grey bits are rounded to 8; of 16 bits for each colour Pillow keeps the
upper 8. Colours become grey by Pillow's luma (ITU-R 601-2).
"""

from typing import Any, BinaryIO

import numpy as np

from score_sde.errors import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Beyond cameras' images, and below what fills the memory. A header says it before pixels are read.
MOST_PIXELS = 2**26
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
    from PIL import Image, ImageOps

    try:
        with _opened(file) as opened:
            image = _plain(ImageOps.exif_transpose(opened), channels)
            if middle:
                left, top = (image.width - middle) // 2, (image.height - middle) // 2
                image = image.crop((left, top, left + middle, top + middle))
            scale = min(image.width / width, image.height / height)
            left = max(0.0, (image.width - width * scale) / 2)
            top = max(0.0, (image.height - height * scale) / 2)
            box = (left, top, image.width - left, image.height - top)
            by = Image.Resampling.BILINEAR if middle else Image.Resampling.BICUBIC
            image = image.resize((width, height), by, box=box)
            return np.asarray(image).reshape(height, width, channels)
    except Exception as error:  # what the decoders raise of foreign bytes has no list
        raise _corrupt(error) from error


def _opened(file: BinaryIO) -> Any:
    """The image with its header read; the ValueError of one that is too large."""
    from PIL import Image

    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels; allowed are up to {MOST_PIXELS:,}"
        )
    return image


def _plain(image: Any, channels: int) -> Any:
    """The image with 8 bits a channel, grey or in colours, without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits; allowed are 8 and 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _corrupt(error: Exception) -> CorruptImageError:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # it names an object in the memory
        return CorruptImageError(f"no image of the formats {', '.join(FORMATS)}")
    return CorruptImageError(one_line(error)[:100] or type(error).__name__)
