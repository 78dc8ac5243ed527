"""One file of an image: what becomes of its pixels."""

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from score_sde.data import decoding
from score_sde.data.decoding import MOST_PIXELS, CorruptImageError, decode, header

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


def board(height, width):
    """A checkerboard: any filter is seen."""
    return (np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(8, 13), (13, 8), (8, 9), (9, 8)])
def test_an_odd_rest_is_cut_off_at_whole_pixels(height, width):
    """As the published models' code has it: rounded down at the left and the top."""
    array = board(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = array[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(decoded(Image.fromarray(array), (8, 8), 1)[..., 0], expected)


def test_what_is_cut_off_is_not_seen_by_the_filter():
    """And an aspect that whole pixels cannot have is met to half a pixel."""
    array = pixels(16, 27)
    for image, size, middle in (
        (array, (8, 8), array[:, 5:21]),
        (array, (7, 5), array[:, 8:19]),  # 16 x 11.43
        (array[:1], (1, 64), array[:1]),  # 0.42 x 27
    ):
        expected = Image.fromarray(middle).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(decoded(Image.fromarray(image), size), expected)
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png")
    expected = Image.fromarray(array[2:13, 8:19]).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(content, 4, 4, 3, middle=11), expected)


def test_the_filter_is_antialiased_and_keeps_the_mean():
    """A checkerboard becomes its mean: a filter without antialiasing would pick single pixels."""
    small = decoded(Image.fromarray(board(64, 64)), (8, 8), 1)
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


# --- Room -----------------------------------------------------------------------------------------


def test_other_images_wait_while_there_is_no_room():
    content, found = io.BytesIO(), []
    Image.fromarray(pixels(6, 9)).save(content, "png")
    thread = threading.Thread(target=lambda: found.append(decode(content, 6, 9, 3)))
    with decoding._room(decoding._ROOM - 8 * 6 * 9):
        thread.start()
        thread.join(0.1)
        assert not found
    thread.join()
    assert found[0].shape == (6, 9, 3)
    with decoding._room(decoding._ROOM):  # all of it is free again
        pass


def test_a_large_jpeg_is_decoded_at_half_its_sides():
    """A photograph has more pixels than there is room for."""
    side = 8 * int(MOST_PIXELS**0.5 / 8 + 1)
    photograph = Image.new("L", (side, side + 8), 40)
    photograph.paste(200, (0, 0, side // 2, side + 8))
    found = decoded(photograph, (8, 8), 1, "jpeg")[..., 0].astype(int)
    # A level of JPEG's. Within two pixels of the edge the filter sees the other half.
    assert np.abs(found[:, :2] - 200).max() <= 1 and np.abs(found[:, 6:] - 40).max() <= 1
    content = io.BytesIO()
    photograph.save(content, "jpeg")
    assert header(content) == (side + 8, side, True)
    with pytest.raises(CorruptImageError, match=f"{side} x {side + 8} pixels; allowed are up to"):
        decoded(photograph, (8, 8), 1, compress_level=1)


def transparent_png(side):
    """The bytes of a PNG that takes a thousand times as much memory."""
    rows, row = zlib.compressobj(1), bytes(4 * side + 1)
    data = b"".join([*(rows.compress(row) for _ in range(side)), rows.flush()])
    parts = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", data)
    chunks = (
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
        for kind, each in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.slow  # 300 megapixels
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_images_just_below_the_limit_stay_below_a_gibibyte(kind, tmp_path, run_python):
    """By eight threads at once: PNG with transparency; WebP without loss, and progressive JPEG with
    four channels, whose decoders take the most."""
    path, side = tmp_path / f"bomb.{kind}", int(MOST_PIXELS**0.5)
    if kind == "png":
        path.write_bytes(transparent_png(side))
        assert path.stat().st_size < 2**20
    elif kind == "webp":
        Image.new("RGBA", (side, side)).save(path, lossless=True, method=0)
    else:
        Image.new("CMYK", (side, side)).save(path, progressive=True)
    code = f"""
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from score_sde.data.decoding import decode

def read(path):
    with open(path, "rb") as file:
        return decode(file, 8, 8, 3)

with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(read, [{str(path)!r}] * 8))
assert len(found) == 8 and all((each == found[0]).all() for each in found)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    assert int(run_python(code).stdout) < 2**20  # KiB
