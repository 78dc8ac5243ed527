"""Foreign, damaged and hostile files: each refused in one line, and nothing of it runs."""

import os
import pickle
import re
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from safetensors.numpy import save_file

from score_sde import convert, networks
from score_sde.convert import exported, score_sde_pytorch, torch_zip
from score_sde.errors import UserError
from tests.convert.originals import describe, source, spec_of

# --- Files as torch.save writes them, made by hand ------------------------------------------------


class Global:
    """An object of a name in a module, by reference."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """What a call of a global, with these arguments, makes."""

    def __init__(self, function: Global, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """A storage: its type, its key in the zip, its number of elements."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.id = ("storage", Global("torch", kind), key, "cpu", count)


def tensor(kind="FloatStorage", key="0", count=4, offset=0, shape=(2, 2), strides=(2, 1)) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, Stored(kind, key, count), offset, shape, strides, False, None)


def stream(value: object) -> bytes:
    """A pickle, opcode by opcode: Python's pickler would import what it names."""
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return stream(value.function) + stream(value.arguments) + b"R"
        case Stored():
            return stream(value.id) + b"Q"
        case tuple():
            return b"(" + b"".join(map(stream, value)) + b"t"
        case dict():
            return b"}(" + b"".join(stream(k) + stream(v) for k, v in value.items()) + b"u"
        case bytes():
            return value  # opcodes as they are
        case _:
            return pickle.dumps(value, protocol=0).rstrip(b".")


ORDERED = b"ccollections\nOrderedDict\n)R"
ENCODED = b"c_codecs\nencode\n(h\x00tR"  # of the memo's first
FOUR = np.arange(4, dtype=np.float32).tobytes()


def write(path: Path, value: object, parts: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + stream(value) + b".")
        for name, content in ({"archive/data/0": FOUR} if parts is None else parts).items():
            archive.writestr(name, content)
    return path


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write a state dict, its arrays as float32."""
    values, parts = {}, {}
    for key, (name, values_of) in enumerate(arrays.items()):
        array = np.ascontiguousarray(values_of, np.float32)
        strides = [step // array.itemsize for step in array.strides]
        kept = {"key": str(key), "count": array.size, "shape": array.shape}
        values[name] = tensor(**kept, strides=tuple(strides))
        parts[f"archive/data/{key}"] = array.tobytes()
    return write(path, values, parts)


def test_a_tensor_is_read_as_it_lies(tmp_path):
    path = write(tmp_path / "a.pth", {"a": tensor(), "t": tensor(strides=(1, 2)), "n": 7})
    read = torch_zip.load(path)
    np.testing.assert_array_equal(read["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(read["t"], [[0, 2], [1, 3]])
    assert read["n"] == 7 and read["a"].dtype == np.float32


def made(name: str, attributes: dict) -> bytes:
    """A module of TorchScript."""
    return stream(Global("__torch__.net", name)) + b")\x81" + stream(attributes) + b"b"


def test_the_attributes_of_torchscript_are_read(tmp_path):
    pads = stream(Global("torch.jit._pickle", "build_intlist")) + b"](K\x00K\x03e\x85R"
    path = write(tmp_path / "a.pt", made("Net", {"conv": made("Conv", {"w": tensor(), "p": pads})}))
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
    "is an old file of torch.save": (
        lambda p: write_bytes(p / "a.pth", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)),
        "of no known kind",
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


def write_zip(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


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


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


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


def test_a_network_that_does_not_fit_is_refused_with_the_list(reference_dir, spec):
    path = source(reference_dir, "vp_ddpmpp_continuous")
    other = {"fir": True, "progressive_input": "residual"}
    for changes in (other, {"num_blocks": 2}, {"width": 16}):
        changed = replace(spec, **changes)
        _, expected = networks.abstract(partial(networks.UNet, changed))
        with pytest.raises(UserError) as error:
            convert.fit(convert.read(path, changed).ema, expected, path)
        assert "\n" not in str(error.value)
    # The last of them; the list is long, and begins so.
    assert "153 of another shape: condition/dense0/bias (32,) for (64,)" in str(error.value)
    assert "and 148 more" in str(error.value)
    flat = convert.read(path, spec).ema
    _, expected = networks.abstract(partial(networks.UNet, spec))
    short = {name: array for name, array in flat.items() if name != "head/bias"}
    short["tail/bias"] = flat["head/bias"]
    with pytest.raises(UserError, match=r"1 missing: head/bias; 1 not the network's: tail/bias"):
        convert.fit(short, expected, path)


def test_numbers_that_are_not_finite_or_not_real_are_refused(reference_dir, spec):
    path = source(reference_dir, "vp_ddpmpp_continuous")
    flat = convert.read(path, spec).ema
    _, expected = networks.abstract(partial(networks.UNet, spec))
    records = np.zeros(3, "f4,f4")
    huge = np.full(3, 1e300)  # inf in float32, without a warning
    for wrong in (np.full(3, np.nan, np.float32), np.zeros(3, np.complex64), records, huge):
        with pytest.raises(UserError, match=r"1 not finite numbers: head/bias\."):
            convert.fit({**flat, "head/bias": wrong}, expected, path)


@pytest.mark.parametrize(
    ("changes", "most_likely"),
    [
        ({"num_blocks": 2}, "config.model.num_blocks = 1"),
        ({"attention_resolutions": ()}, "config.model.attention_resolutions = (8,)"),
        ({"attention_resolutions": (16, 8)}, "config.model.attention_resolutions = (8,)"),
        ({"progressive_input": "residual"}, "config.model.progressive_input = 'none'"),
        ({"embedding": "fourier"}, "config.model.embedding = 'positional'"),
        ({"width": 16}, "config.model.width = 8"),
        ({"channels": 1}, "config.data.channels = 3"),
        ({"multipliers": (1, 3)}, "config.model.multipliers = (1, 2)"),
        ({}, ""),
    ],
)
def test_the_likeliest_setting_comes_before_the_list(reference_dir, spec, changes, most_likely):
    path = source(reference_dir, "vp_ddpmpp_continuous")
    changed = replace(spec, **changes)
    foreign = convert.read(path, changed)
    assert foreign.hint() == most_likely
    if changes:
        _, expected = networks.abstract(partial(networks.UNet, changed))
        with pytest.raises(UserError, match=re.escape(f"config, most likely {most_likely}; ")):
            convert.fit(foreign.ema, expected, path, hint=foreign.hint)


def test_the_likeliest_setting_of_a_flax_checkpoint(reference_dir):
    name = "flax_subvp_ddpmpp_continuous"
    spec, path = spec_of(describe(reference_dir, name)), source(reference_dir, name)
    assert convert.read(path, spec).hint() == ""
    other = replace(spec, num_blocks=spec.num_blocks + 1)
    assert convert.read(path, other).hint() == f"config.model.num_blocks = {spec.num_blocks}"


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_alone(reference_dir, spec, prefix):
    """A dict of names, as it is or inside of one; wrappers of PyTorch prefix the names."""
    path = source(reference_dir, "vp_ddpmpp_continuous")
    state = torch_zip.load(path)
    names = {name.removeprefix("module."): array for name, array in state["model"].items()}
    weights = {f"{prefix}{name}": array for name, array in names.items()}
    expected = score_sde_pytorch.from_state(state, spec, path)
    for file in (weights, {"state_dict": weights}, {"model": weights}, {"ema": weights, "n": 3}):
        foreign = score_sde_pytorch.from_state(file, spec, path)
        assert foreign.nameless and foreign.params is None and foreign.mu is None
        assert foreign.ema.keys() == expected.params.keys()
        np.testing.assert_array_equal(foreign.ema["head/kernel"], expected.params["head/kernel"])
        np.testing.assert_array_equal(foreign.sigmas, expected.sigmas)
    both = score_sde_pytorch.from_state({**state, "ema": weights}, spec, path)
    assert not both.nameless and both.step == expected.step
    np.testing.assert_array_equal(both.ema["head/kernel"], expected.params["head/kernel"])


@pytest.mark.parametrize(
    "sigmas", [np.zeros(0, "f4"), np.ones((2, 3), "f4"), np.array([1, -1.0]), np.arange(3)]
)
def test_noise_levels_that_are_none(reference_dir, spec, sigmas):
    path = source(reference_dir, "vp_ddpmpp_continuous")
    state = torch_zip.load(path)
    assert score_sde_pytorch.from_state(state, spec, path).sigmas is not None
    without = dict(state["model"])
    del without["module.sigmas"]
    assert score_sde_pytorch.from_state({**state, "model": without}, spec, path).sigmas is None
    state["model"]["module.sigmas"] = sigmas
    with pytest.raises(UserError, match=r"sigmas is .*; allowed is one row of positive numbers"):
        score_sde_pytorch.from_state(state, spec, path)


def test_a_flax_checkpoint_without_its_optimizer(reference_dir, tmp_path):
    name = "flax_subvp_ddpmpp_continuous"
    spec, path = spec_of(describe(reference_dir, name)), source(reference_dir, name)
    whole, state = convert.read(path, spec), msgpack_restore(path.read_bytes())
    for optimizer in (None, {"target": state["optimizer"]["target"], "state": {}}):
        cut = tmp_path / "cut"
        cut.write_bytes(msgpack_serialize({**state, "optimizer": optimizer}))
        foreign = convert.read(cut, spec)
        assert (foreign.step, foreign.adam_steps) == (whole.step, 0)
        assert foreign.mu is None and foreign.nu is None
        assert (foreign.params is None) == (optimizer is None)
        np.testing.assert_array_equal(foreign.ema["stem/kernel"], whole.ema["stem/kernel"])


def test_averages_are_never_silently_the_raw_weights(reference_dir, spec):
    path = source(reference_dir, "vp_ddpmpp_continuous")
    state = torch_zip.load(path)
    state["model"]["module.note"] = "no array"
    foreign = score_sde_pytorch.from_state(state, spec, path)
    assert not np.array_equal(foreign.ema["stem/kernel"], foreign.params["stem/kernel"])
    state["ema"]["shadow_params"][5] = "no array"
    with pytest.raises(UserError, match="averages are 153 arrays; allowed are those of its 154"):
        score_sde_pytorch.from_state(state, spec, path)
    state["ema"]["shadow_params"].pop(5)
    with pytest.raises(UserError, match="averages are 153 arrays; allowed are those of its 154"):
        score_sde_pytorch.from_state(state, spec, path)


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("count", [None, "3", [1, [2]], CYCLE, np.zeros(4), np.nan, 1e300, -1])
def test_a_count_of_updates_that_is_none_is_never_taken_for_0(count, reference_dir):
    """By 0 the moments' bias would be corrected once more; `--mode convert` refuses -1."""
    path = source(reference_dir, "ve_ncsnpp_continuous")
    state = torch_zip.load(path)
    spec = spec_of(describe(reference_dir, "ve_ncsnpp_continuous"))
    assert score_sde_pytorch.from_state(state, spec, path).adam_steps == 3
    state["optimizer"]["state"][5]["step"] = count
    assert score_sde_pytorch.from_state(state, spec, path).adam_steps == -1
    state["step"] = count
    with pytest.raises(UserError, match="its step is"):
        score_sde_pytorch.from_state(state, spec, path)


def test_names_of_a_source_stay_in_one_line(spec):
    _, expected = networks.abstract(partial(networks.UNet, spec))
    with pytest.raises(UserError) as error:
        convert.fit({"a\n\x1b[31m": np.zeros(3, np.float32)}, expected, "x")
    assert str(error.value).isprintable()
    assert r"a\n\x1b[31m" in str(error.value)


def test_an_export_of_other_numbers_is_refused(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / exported.FILE)
    with pytest.raises(UserError, match=r"a is F64; allowed are F32"):
        exported.read(tmp_path)
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'  # numpy has no such
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    write_bytes(tmp_path / exported.FILE, content)
    with pytest.raises(UserError, match="a is F8_E4M3"):
        exported.read(tmp_path)
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / exported.FILE, metadata={"step": "-1"})
    with pytest.raises(UserError, match="step is '-1'"):
        exported.read(tmp_path)


def test_another_network_than_a_unet_reads_exports_alone(reference_dir, tmp_path):
    with pytest.raises(UserError, match="allowed are exports"):
        convert.read(source(reference_dir, "vp_ddpmpp_continuous"), "an MLP")
    array = np.arange(3, dtype=np.float32)
    exported.write(tmp_path, {"stem/bias": array}, 7)
    foreign = convert.read(tmp_path, "an MLP")
    assert foreign.step == 7
    np.testing.assert_array_equal(foreign.ema["stem/bias"], array)


def test_what_checkpoints_hold_beside_tensors(tmp_path):
    """Numpy scalars, bytes and ordered dicts, as Python's pickler writes them in protocol 2."""
    value = {"lr": np.float64(2e-4), "order": OrderedDict(a=1), "n": np.int64(3), "b": b"\xff"}
    parts = {"x/data.pkl": pickle.dumps(value, protocol=2)}
    assert torch_zip.load(write_zip(tmp_path / "a.pth", parts)) == value


def test_what_is_harmless_beside_tensors_is_skipped(tmp_path):
    """torch's sizes, dtypes and devices, defaultdicts, and a Namespace of options."""
    options = Namespace(lr=1e-3, name="x", betas=(0.9, 0.999))
    counts: dict[str, Any] = defaultdict(dict, {"k": {"step": 3}})
    plain = pickle.dumps({"options": options, "counts": counts}, protocol=2)
    read = torch_zip.load(write_zip(tmp_path / "a.pth", {"x/data.pkl": plain}))
    assert read["counts"] == {"k": {"step": 3}} and not vars(read["options"])
    value = {
        "size": Call(Global("torch", "Size"), (2, 3)),
        "dtype": Global("torch", "bfloat16"),
        "device": Call(Global("torch", "device"), "cuda", 0),
        "a": tensor(),
    }
    read = torch_zip.load(write(tmp_path / "b.pth", value))
    assert read["size"] == (2, 3) and read["a"].shape == (2, 2)
