"""What the readers take from files of the original code and from exports, and what they refuse."""

import pickle
import re
import struct
from argparse import Namespace
from collections import OrderedDict, defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from safetensors.numpy import save_file

from score_sde import convert, networks
from score_sde.convert import exported, original, score_sde_pytorch, torch_zip
from score_sde.errors import UserError
from tests.convert.originals import describe, source, spec_of
from tests.convert.torch_files import (
    Call,
    Global,
    tensor,
    write,
    write_bytes,
    write_zip,
)


@pytest.fixture(scope="module")
def spec(reference_dir):
    return spec_of(describe(reference_dir, "vp_ddpmpp_continuous"))


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


@pytest.mark.parametrize("shape", [(), (0,), (8, 1)])
def test_arrays_of_no_networks_shape_tell_no_setting(spec, shape):
    paths = [array.path for array in original.arrays(spec) if array.path]
    assert original.likeliest(spec, lambda spec: dict.fromkeys(paths, shape)) == ""


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


def test_a_number_stays_one_without_axes():
    """A learned schedule has such."""
    expected = {"gamma": np.zeros((), np.float32), "kernel": np.zeros((2, 3), np.float32)}
    given = {"gamma": np.asarray(2.5), "kernel": np.arange(6.0).reshape(3, 2).T}
    found = convert.fit(given, expected, "x")
    assert found["gamma"].shape == () and found["gamma"] == 2.5
    np.testing.assert_array_equal(found["kernel"], given["kernel"])
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}


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
