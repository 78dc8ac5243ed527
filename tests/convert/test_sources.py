"""Foreign, damaged and hostile files: each refused in one line, and nothing of it runs."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import pytest

from score_sde import convert, networks
from score_sde.convert import exported, torch_zip
from score_sde.errors import UserError
from tests.convert.originals import describe, source, spec_of
from tests.convert.torch_files import (
    ENCODED,
    FOUR,
    ORDERED,
    Call,
    Global,
    make,
    module,
    pipe,
    stream,
    tensor,
    write,
    write_bytes,
    write_old,
    write_zip,
)


def test_a_tensor_is_read_as_it_lies(tmp_path):
    path = write(tmp_path / "a.pth", {"a": tensor(), "t": tensor(strides=(1, 2)), "n": 7})
    read = torch_zip.load(path)
    np.testing.assert_array_equal(read["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(read["t"], [[0, 2], [1, 3]])
    assert read["n"] == 7 and read["a"].dtype == np.float32


def test_a_file_of_before_2020_is_read_as_one_of_today(tmp_path):
    """Two views of one storage, whose key says nothing of the order, and another type."""
    views = {"a": tensor(key="9", view=(None,)), "t": tensor(key="9", strides=(1, 2), view=(None,))}
    half = tensor("HalfStorage", "10", count=2, shape=(2,), strides=(1,))
    parts = {
        "10": struct.pack("<Q", 2) + np.asarray([1.5, -2.0], np.float16).tobytes(),
        "9": struct.pack("<Q", 4) + FOUR,
    }
    path = write_old(tmp_path / "a.pth", {**views, "h": half, "n": 7}, parts)
    read = torch_zip.load(path)
    np.testing.assert_array_equal(read["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(read["t"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(read["h"], [1.5, -2.0])
    assert read["n"] == 7 and read["h"].dtype == np.float16
    assert torch_zip.shapes(path) == {"a": (2, 2), "t": (2, 2), "h": (2,)}


def test_the_attributes_of_torchscript_are_read(tmp_path):
    pads = stream(Global("torch.jit._pickle", "build_intlist")) + b"](K\x00K\x03e\x85R"
    path = write(tmp_path / "a.pt", module({"conv": module({"w": tensor(), "p": pads}, "Conv")}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/__torch__/net.py", "raise SystemExit")
    read = torch_zip.load(path)["conv"]
    np.testing.assert_array_equal(read["w"], [[0, 1], [2, 3]])
    assert read["p"] == (0, 3)


def system(tmp_path: Path) -> Call:
    return Call(Global("posix", "system"), f"touch {tmp_path / 'ran'}")


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "calls os.system": (
        lambda p: write(p / "a.pth", {"model": system(p)}),
        "it wants to import posix.system",
    ),
    "calls builtins.eval": (
        lambda p: write(p / "a.pth", Call(Global("builtins", "eval"), f"open('{p}/ran', 'w')")),
        "it wants to import builtins.eval",
    ),
    "reaches through an allowed module": (
        lambda p: write(p / "a.pth", Call(Global("torch._utils", "os.system"), "true")),
        "it wants to import torch._utils.os.system",
    ),
    "calls a storage's type": (
        lambda p: write(p / "a.pth", Call(Global("torch", "FloatStorage"), 3)),
        "damaged or cut short",
    ),
    "gives a state to a function": (
        lambda p: write(p / "a.pth", stream(Global("_codecs", "encode")) + stream({"x": 1}) + b"b"),
        "it gives a state to something that has none",
    ),
    "encodes with a codec": (
        lambda p: write(p / "a.pth", Call(Global("_codecs", "encode"), "x", "zlib")),
        "it encodes a text in another way than as bytes",
    ),
    "asks for a place far out in the memo": (
        lambda p: write(p / "a.pth", b"}" + b"r" + struct.pack("<I", 2**31 - 1)),
        "not a checkpoint of score_sde_pytorch",  # it is an empty dict, and takes no more room
    ),
    "has a key that takes for ever to hash": (
        lambda p: write(p / "a.pth", b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s"),
        "it holds a dict whose keys are not names or numbers",
    ),
    "has such a thing in a set": (
        lambda p: write(p / "a.pth", b"\x8f(" + b")" + b"q\x00h\x00\x86" * 60 + b"\x90"),
        "it holds a set",
    ),
    "hides the methods of a dict": (
        lambda p: write(p / "a.pth", ORDERED + stream({"items": "x", "get": "y"}) + b"b"),
        "not a checkpoint of score_sde_pytorch",
    ),
    "gives a state to an array": (
        lambda p: write(p / "a.pth", stream(tensor()) + stream((1,)) + b"b"),
        "it gives a state to something that has none",
    ),
    "asks for 256 MiB to read nothing into": (
        lambda p: write(p / "a.pth", b"\x96" + struct.pack("<Q", 2**28)),
        "it holds a bytearray",
    ),
    "encodes one text again and again": (
        lambda p: write(p / "a.pth", stream("a" * 10**5) + b"q\x000(" + ENCODED * 100 + b"l"),
        "it holds more bytes than the file has",
    ),
    "has a long pickle": (
        lambda p: write(p / "a.pth", b"(" + b"}" * torch_zip.MOST_PICKLE_BYTES + b"l"),
        "bytes, more than 16777216",
    ),
    "has keys of one hash": (
        lambda p: write(p / "a.pth", {k * (2**61 - 1): 1 for k in range(9)}),
        "it holds a dict whose keys are not names or numbers",
    ),
    "ends within a number": (
        lambda p: write(p / "a.pth", b"X\x01"),
        "damaged or cut short",
    ),
    "has a number of a strange type": (
        lambda p: write(
            p / "a.pth",
            Call(
                Global("numpy.core.multiarray", "scalar"),
                Call(Global("numpy", "dtype"), "(,)f4"),
                b"C\x04aaaa",
            ),
        ),
        "it holds a numpy scalar that is no number",
    ),
    "names something that a terminal obeys": (
        lambda p: write(p / "a.pth", stream("o\ns") + stream("\x1b[31m") + b"\x93"),
        r"it wants to import o\ns.\x1b[31m",
    ),
    "is a device without end": (
        lambda p: Path("/dev/zero"),
        "--source /dev/zero: allowed are files and folders",
    ),
    "is a pipe": (
        lambda p: pipe(p / "a.pth"),
        "allowed are files and folders",
    ),
    "has a compressed part (a zip bomb)": (
        lambda p: write(
            p / "a.pth", {}, {"archive/data/0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED
        ),
        "its parts are compressed",
    ),
    "names a path outside": (
        lambda p: write(p / "a.pth", {}, {"archive/../../ran": b"x"}),
        "it names a path outside of itself",
    ),
    "has a tensor beyond its storage": (
        lambda p: write(p / "a.pth", {"a": tensor(offset=1)}),
        "it holds a tensor that is larger than its storage",
    ),
    "has a tensor of one element, repeated": (
        lambda p: write(p / "a.pth", {"a": tensor(shape=(10**6, 10**6), strides=(0, 0))}),
        "it holds a tensor that is larger than its storage",
    ),
    "has a tensor that goes backwards": (
        lambda p: write(p / "a.pth", {"a": tensor(offset=3, strides=(-2, -1))}),
        "it holds a tensor without a shape",
    ),
    "has a storage of another size": (
        lambda p: write(p / "a.pth", {"a": tensor(count=5)}),
        "has not the size that data.pkl says",
    ),
    "has a storage of no known type": (
        lambda p: write(p / "a.pth", {"a": tensor(kind="QInt8Storage")}),
        "it wants to import torch.QInt8Storage",
    ),
    "has a storage that is not there": (
        lambda p: write(p / "a.pth", {"a": tensor(key="9")}),
        "damaged or cut short",
    ),
    "has no pickle": (
        lambda p: write_zip(p / "a.pth", {"archive/x": b""}),
        "it has no data.pkl",
    ),
    "fills a module as it makes it": (  # by keys that nobody has looked at
        lambda p: write(p / "a.pth", Call(Global("__torch__.net", "Net"), (("a", 1),))),
        "damaged or cut short",
    ),
    "gives a module a state that is none": (
        lambda p: write(
            p / "a.pth", stream(Global("__torch__.net", "Net")) + b")\x81" + stream((1,)) + b"b"
        ),
        "it gives a state to something that has none",
    ),
    "calls a dtype": (
        lambda p: write(p / "a.pth", Call(Global("torch", "float32"), 3)),
        "damaged or cut short",
    ),
    "calls a factory": (
        lambda p: write(p / "a.pth", Call(Global("builtins", "list"), (1, 2))),
        "damaged or cut short",
    ),
    "has a size that is none": (
        lambda p: write(p / "a.pth", Call(Global("torch", "Size"), (-1, 2**60))),
        "it holds a tensor without a shape",
    ),
    "hides methods in a Namespace": (
        lambda p: write(
            p / "a.pth", b"cargparse\nNamespace\n)\x81" + stream({"__class__": "x"}) + b"b"
        ),
        "not a checkpoint of score_sde_pytorch",
    ),
    "is another object": (
        lambda p: write(p / "a.pth", {"state_dict": {"a": "b"}}),
        "not a checkpoint of score_sde_pytorch",
    ),
    "is an empty file": (lambda p: write_bytes(p / "a.pth", b""), "of no known kind"),
    "is noise": (lambda p: write_bytes(p / "a.pth", os.urandom(999)), "of no known kind"),
    "is a text": (lambda p: write_bytes(p / "a.pth", b"hello"), "of no known kind"),
    "is an old file of torch.save without anything else": (
        lambda p: write_bytes(p / "a.pth", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)),
        "damaged or cut short",
    ),
    "is an old file that calls os.system": (
        lambda p: write_old(p / "a.pth", {"model": system(p)}),
        "it wants to import posix.system",
    ),
    "is an old file with a storage of another length": (
        lambda p: write_old(p / "a.pth", {"a": tensor()}, {"0": struct.pack("<Q", 5) + FOUR}),
        "damaged or cut short",
    ),
    "is an old file with fewer numbers": (
        lambda p: write_old(p / "a.pth", {"a": tensor()}, {"0": struct.pack("<Q", 4) + FOUR[:9]}),
        "damaged or cut short",
    ),
    "is an old file with another storage": (
        lambda p: write_old(p / "a.pth", {"a": tensor()}, {"1": struct.pack("<Q", 4) + FOUR}),
        "damaged or cut short",
    ),
    "is an old file with a storage beyond its end": (
        lambda p: write_old(p / "a.pth", {"a": tensor(count=2**40)}),
        "it holds more bytes than the file has",
    ),
    "is an old file with a part of another storage": (
        lambda p: write_old(p / "a.pth", {"a": tensor(view=(("1", 0, 4),))}),
        "it holds something else than tensors of numbers",
    ),
    "is an old file of a big-endian machine": (
        lambda p: write_old(p / "a.pth", {"a": tensor()}, little_endian=False),
        "its numbers are big-endian",
    ),
    "is a msgpack of something else": (
        lambda p: write_bytes(p / "a.flax", msgpack.packb({"a": 1})),
        "not a checkpoint of score_sde",
    ),
    "is a msgpack whose array has objects": (
        lambda p: write_bytes(
            p / "a.flax",
            msgpack.packb({"params_ema": msgpack.ExtType(1, msgpack.packb([[1], "O", bytes(8)]))}),
        ),
        "of no known kind",
    ),
    "is a msgpack whose array has a strange type": (
        lambda p: write_bytes(p / "a.flax", flax_state(flax_array("(,)f4"))),
        "of no known kind",
    ),
    "is a msgpack of a few hundred levels": (
        lambda p: write_bytes(p / "a.flax", flax_state(b"\x81\xa1a" * 900 + b"\x01")),
        "not a checkpoint of score_sde",
    ),
    "is a msgpack of a million levels": (
        lambda p: write_bytes(p / "a.flax", b"\x81\xa1a" * 10**6),
        "of no known kind",
    ),
    "is a folder of nothing": (lambda p: make(p / "folder"), "config.json"),
    "is an export that is cut short": (
        lambda p: write_bytes(make(p / "folder") / exported.FILE, b"\x40" + bytes(20)).parent,
        "header",
    ),
}


def flax_array(dtype: str) -> bytes:
    """24 bytes as Flax writes arrays."""
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb([[-1], dtype, bytes(24)])))


def flax_state(kernel: bytes) -> bytes:
    """A checkpoint of the form of score_sde's, with this for an array."""
    layer = {"Conv_0": {"kernel": 0}}
    rest = {"optimizer": {"target": layer, "state": {"step": 1, "param_states": {}}}, "step": 1}
    ema = b"\x81" + msgpack.packb("Conv_0") + b"\x81" + msgpack.packb("kernel") + kernel
    packed = b"".join(msgpack.packb(key) + msgpack.packb(value) for key, value in rest.items())
    return b"\x83" + packed + msgpack.packb("params_ema") + ema


@pytest.fixture(scope="module")
def spec(reference_dir):
    return spec_of(describe(reference_dir, "vp_ddpmpp_continuous"))


@pytest.mark.parametrize(("hostile", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_or_damaged_source_is_refused(hostile, says, tmp_path, spec):
    path = hostile(tmp_path)
    with pytest.raises(UserError) as error:
        convert.read(path, spec)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_cut_short_anywhere_is_refused(reference_dir, tmp_path, spec):
    whole = source(reference_dir, "vp_ddpmpp_continuous").read_bytes()
    flax = source(reference_dir, "flax_subvp_ddpmpp_continuous").read_bytes()
    for content in (whole, flax):
        for share in (0.01, 0.3, 0.6, 0.99, 0.9999):
            path = write_bytes(tmp_path / "cut", content[: int(share * len(content))])
            with pytest.raises(UserError) as error:
                convert.read(path, spec)
            assert "\n" not in str(error.value)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # of the noise
def test_noise_in_the_pickle_ends_in_one_line(reference_dir, tmp_path, spec):
    """Bytes changed at random: read with other names or values, or refused; never another error."""
    with zipfile.ZipFile(source(reference_dir, "vp_ddpmpp_continuous")) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    generator = np.random.default_rng(0)
    _, expected = networks.abstract(partial(networks.UNet, spec))
    refused = 0
    for _ in range(200):
        noisy = bytearray(parts[pickled])
        for place in generator.integers(len(noisy), size=4):
            noisy[place] = generator.integers(256)
        path = write_zip(tmp_path / "noisy.pth", {**parts, pickled: bytes(noisy)})
        try:
            convert.fit(convert.read(path, spec).ema, expected, path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50
