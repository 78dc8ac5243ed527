"""Pickled batches, written here byte by byte as Python 2 wrote the official ones."""

import os
import pickle
import struct

import numpy as np
import pytest

from score_sde.data import load
from score_sde.data.cifar10 import parse_pickle
from score_sde.data.pickles import read_batch
from score_sde.errors import UserError


def text(value):  # SHORT_BINSTRING
    return b"U" + bytes([len(value)]) + value


def number(value):  # BININT
    return b"J" + struct.pack("<i", value)


def python2_batch(data, labels, *, fortran=False, pixels=None, dtype=b"u1"):
    """The stream of `cPickle.dump(batch, file, 2)` under Python 2 with numpy 1.

    A dict with the official keys in the official order but for the file names, which nobody reads:
    the array is `_reconstruct(ndarray, (0,), 'b')` and a state (version, shape, dtype, Fortran
    order, bytes), its dtype `dtype('u1', 0, 1)` and a state.
    """
    pixels = data.tobytes("F" if fortran else "C") if pixels is None else pixels
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
        + text(b"b")
        + b"\x87Rq\x09("
        + b"K\x01"
        + b"".join(map(number, data.shape))
        + b"\x86"
        + (b"cnumpy\ndtype\nq\x0a" + text(dtype) + b"K\x00K\x01\x87Rq\x0b")
        + (b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb")
        + (b"\x88" if fortran else b"\x89")
        + (b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb")
    )
    return (
        b"\x80\x02}q\x01("
        + (text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03")
        + (text(b"labels") + b"q\x04]q\x05(" + b"".join(map(number, labels)) + b"e")
        + (text(b"data") + b"q\x06" + array)
        + b"u."
    )


DATA = np.random.default_rng(0).integers(0, 256, (5, 3072)).astype(np.uint8)
LABELS = [0, 9, 3, 3, 7]


@pytest.mark.parametrize("fortran", [False, True])
def test_reads_what_python_reads(fortran):
    raw = python2_batch(DATA, LABELS, fortran=fortran)
    data, labels = read_batch(raw, "batch")
    np.testing.assert_array_equal(data, DATA)
    assert labels == LABELS


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_the_test_writes_what_numpy_itself_reads():
    batch = pickle.loads(python2_batch(DATA, LABELS), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], DATA)
    assert batch[b"labels"] == LABELS


def test_images_are_channels_last():
    images, labels = parse_pickle(python2_batch(DATA, LABELS), "batch")
    assert images.shape == (5, 32, 32, 3) and labels.dtype == np.int32
    # Byte c·1024 + 32·row + column of a record.
    assert images[2, 5, 6, 1] == DATA[2, 1024 + 32 * 5 + 6]


class Evil:
    """Pickles as a call: `call(*arguments)`."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_program_is_refused_and_not_run(protocol, tmp_path):
    victim = tmp_path / "made"
    raw = pickle.dumps({"data": Evil(os.mkdir, str(victim))}, protocol)
    with pytest.raises(UserError, match=r"b\.pkl is refused: it wants to import posix\.mkdir"):
        read_batch(raw, "b.pkl")
    assert not victim.exists()


@pytest.mark.parametrize(
    "stream, name",
    [
        (b"cbuiltins\neval\n(S'1/0'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'file'\ntR.", "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"(S'1'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02c__main__\nx\n.", "__main__.x"),
    ],
)
def test_any_other_name_is_refused(stream, name):
    with pytest.raises(UserError, match=f"it wants to import {name}, and only numpy arrays"):
        read_batch(stream, "batch")


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x80\x02",
        b"not a pickle",
        b"\x80\x63.",  # protocol 99
        b"cnumpy\nndarray\n)R.",  # calls the stand-in that cannot be called
        b"cnumpy\nndarray\n}S'shape'\nK\x01sb.",  # sets an attribute on it
        b"cnumpy\ndtype\n}S'x'\nK\x01sb.",  # … and on a class
        b"cnumpy\ndtype\n)R.",  # without its argument
        b"P1\n.",  # a persistent id
        b"\x82\x01.",  # an extension code
    ],
)
def test_damaged_streams_end_in_one_line(stream):
    with pytest.raises(UserError, match=r"config\.data\.dir: batch is damaged or not a pickle"):
        read_batch(stream, "batch")


def test_every_truncation_ends_in_one_line():
    raw = python2_batch(DATA[:1, :20], LABELS[:1])
    read_batch(raw, "batch")
    for end in range(len(raw)):
        with pytest.raises(UserError, match="damaged or not a pickle"):
            read_batch(raw[:end], "batch")


@pytest.mark.parametrize(
    "raw",
    [
        pickle.dumps([1, 2], 2),
        pickle.dumps({"data": 0, "labels": []}, 2),
        python2_batch(DATA, LABELS[:-1]),
        python2_batch(DATA, LABELS, pixels=DATA.tobytes()[:-1]),
        python2_batch(DATA, LABELS, dtype=b"O8"),
        python2_batch(DATA[0], LABELS),
        python2_batch(DATA, LABELS).replace(b"J\x09\0\0\0", b"G\0\0\0\0\0\0\0\0"),  # a float label
    ],
    ids=["list", "number", "labels", "pixels", "objects", "rank", "float"],
)
def test_other_contents_are_refused(raw):
    with pytest.raises(UserError, match="batch is not an official batch"):
        read_batch(raw, "batch")


@pytest.mark.parametrize("label", [-1, 10, 2**31 - 1])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(UserError, match=r"batch has a label that is not in 0 … 9"):
        parse_pickle(python2_batch(DATA, [0, 1, 2, 3, label]), "batch")


def test_other_image_sizes_are_refused():
    with pytest.raises(UserError, match="batch has images of 3000 bytes, not 3072"):
        parse_pickle(python2_batch(DATA[:, :3000], LABELS), "batch")


def test_what_torchvision_downloaded_is_found_from_its_root(tmp_path):
    """It puts Python's batches into cifar-10-batches-py, within the folder that it is given."""
    rows = np.random.default_rng(0).integers(0, 256, (10_000, 3072)).astype(np.uint8)
    labels = [row % 10 for row in range(10_000)]
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(python2_batch(rows, labels))
    images, condition = load("cifar10", "test", str(tmp_path))
    assert images.shape == (10_000, 32, 32, 3) and condition["labels"].tolist() == labels
    assert images[7, 3, 5, 2] == rows[7, 2048 + 32 * 3 + 5]
