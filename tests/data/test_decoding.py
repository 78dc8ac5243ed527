"""One file of an image: what becomes of its pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from score_sde.data.decoding import CorruptImageError, decode, header

DRAW = np.random.default_rng(0)


def pixels(height, width, channels=3):
    return DRAW.integers(0, 256, (height, width, channels), np.uint8).squeeze()


def decoded(image: Image.Image, size, channels=3, kind="png", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    content.seek(0)
    return decode(content, *size, channels)


# --- One file -------------------------------------------------------------------------------------


def test_an_image_of_the_target_s_size_stays_as_it_is():
    array = pixels(6, 9)
    np.testing.assert_array_equal(decoded(Image.fromarray(array), (6, 9)), array)


def test_the_middle_is_cut_out():
    array = pixels(6, 10)
    np.testing.assert_array_equal(decoded(Image.fromarray(array), (6, 4)), array[:, 3:7])
    np.testing.assert_array_equal(decoded(Image.fromarray(array), (2, 10)), array[2:4])


def test_the_filter_is_antialiased_and_keeps_the_mean():
    """A checkerboard becomes its mean: a filter without antialiasing would pick single pixels."""
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = decoded(Image.fromarray(board.astype(np.uint8)), (8, 8), 1)
    # 127.5, and a level of rounding in each of the two passes. At the border the filter has
    # fewer pixels.
    assert np.abs(small[1:-1, 1:-1].astype(float) - 127.5).max() <= 2
    flat = Image.new("RGB", (33, 50), (10, 200, 77))
    assert (decoded(flat, (16, 24)) == np.asarray([10, 200, 77])).all()


def test_transparent_pixels_lie_over_white():
    array = pixels(4, 5, 4)
    array[..., 3] = [0, 64, 128, 255, 255]
    found = decoded(Image.fromarray(array), (4, 5)).astype(float)
    alpha = array[..., 3:] / 255
    # A level of rounding.
    assert np.abs(found - (alpha * array[..., :3] + (1 - alpha) * 255)).max() <= 1
    grey = np.stack([array[..., 0], array[..., 3]], axis=-1)
    found = decoded(Image.fromarray(grey, "LA"), (4, 5), 1).astype(float)
    assert np.abs(found - (alpha * array[..., :1] + (1 - alpha) * 255)).max() <= 1


def test_palettes_are_looked_up():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    colours = DRAW.integers(0, 256, (6, 3), np.uint8)
    image.putpalette(colours.ravel().tolist())
    for options in ({}, {"transparency": 4}):
        expected = colours.reshape(2, 3, 3).copy()
        if options:
            expected[1, 1] = 255
        np.testing.assert_array_equal(decoded(image, (2, 3), **options), expected)


def test_sixteen_bits_are_rounded_to_eight():
    array = DRAW.integers(0, 2**16, (4, 5), np.uint16)
    array[0, :2] = 0, 2**16 - 1
    for kind in ("png", "tiff"):
        found = decoded(Image.fromarray(array), (4, 5), 1, kind)[..., 0]
        np.testing.assert_array_equal(found, np.rint(array / 257).astype(np.uint8))
    floats = Image.fromarray(array.astype(np.float32))
    with pytest.raises(CorruptImageError, match="32 bits"):
        decoded(floats, (4, 5), 1, "tiff")


def test_the_turn_of_exif_is_made():
    array = pixels(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side is the top
    found = decoded(Image.fromarray(array), (6, 4), exif=exif)
    np.testing.assert_array_equal(found, np.rot90(array, -1))
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png", exif=exif)
    assert header(content) == (6, 4, False)


def test_grey_and_colours_become_one_another():
    grey = pixels(4, 5, 1)
    found = decoded(Image.fromarray(grey), (4, 5))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    array = pixels(4, 5)
    luma = array @ np.asarray([0.299, 0.587, 0.114])
    # A level of rounding.
    assert np.abs(decoded(Image.fromarray(array), (4, 5), 1)[..., 0] - luma).max() <= 1
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(decoded(bits, (4, 5), 1))) <= {0, 255}


def test_of_an_animation_the_first_frame_is_taken():
    first, second = (Image.fromarray(np.full((3, 4), value, np.uint8)) for value in (50, 200))
    found = decoded(first, (3, 4), 1, "gif", save_all=True, append_images=[second])
    assert (found == 50).all()


# --- Folders and archives -------------------------------------------------------------------------
