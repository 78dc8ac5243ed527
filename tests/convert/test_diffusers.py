"""The weights in folders of diffusers' `UNet2DModel`: their places, their files."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from score_sde import networks
from score_sde.convert import diffusers
from score_sde.convert.fit import fit
from score_sde.errors import UserError
from score_sde.networks import UNet
from tests.convert.diffusers_folders import (
    DDPM,
    DDPM_SHAPES,
    NCSNPP,
    NCSNPP_SHAPES,
    NEW,
    arrays_of,
    ddpm_spec,
    ncsnpp_spec,
    refusal,
    write,
)


def test_the_arrays_of_ddpm_find_their_places(tmp_path: Path):
    theirs, spec = arrays_of(DDPM_SHAPES), ddpm_spec()
    foreign = diffusers.read(write(tmp_path, DDPM, theirs), spec)
    ours = foreign.ema
    fit(ours, networks.abstract(partial(UNet, spec))[1], tmp_path)  # all of them, in our shapes
    assert (foreign.params, foreign.mu, foreign.nu, foreign.step) == (None, None, None, 0)
    for mine, name in {
        "stem/kernel": "conv_in.weight",
        "encoder/level0_down/conv/kernel": "down_blocks.0.downsamplers.0.conv.weight",
        "decoder/level1_up/conv/kernel": "up_blocks.0.upsamplers.0.conv.weight",
        "decoder/level0_block1/conv1/kernel": "up_blocks.1.resnets.1.conv2.weight",
        "head/kernel": "conv_out.weight",
    }.items():
        np.testing.assert_array_equal(ours[mine], theirs[name].transpose(2, 3, 1, 0))
    for mine, name in {
        "condition/dense0/kernel": "time_embedding.linear_1.weight",
        "middle/block1/embedding/kernel": "mid_block.resnets.1.time_emb_proj.weight",
        "decoder/level1_attention1/output/kernel": "up_blocks.0.attentions.1.to_out.0.weight",
    }.items():
        np.testing.assert_array_equal(ours[mine], theirs[name].T)
    shortcut = theirs["up_blocks.1.resnets.0.conv_shortcut.weight"]
    np.testing.assert_array_equal(
        ours["decoder/level0_block0/shortcut/kernel"], shortcut[:, :, 0, 0].T
    )
    norm = theirs["mid_block.attentions.0.group_norm.weight"]
    np.testing.assert_array_equal(ours["middle/attention/norm/scale"], norm)


def test_the_arrays_of_ncsnpp_find_their_places(tmp_path: Path):
    theirs, spec = arrays_of(NCSNPP_SHAPES), ncsnpp_spec()
    ours = diffusers.read(write(tmp_path, NCSNPP, theirs), spec).ema
    fit(ours, networks.abstract(partial(UNet, spec))[1], tmp_path)
    for mine, name in {
        "encoder/level0_down/conv0/kernel": "down_blocks.0.resnet_down.conv1.weight",
        "encoder/level0_down/shortcut/kernel": "down_blocks.0.resnet_down.conv_shortcut.weight",
        "encoder/level0_input/conv/kernel": "down_blocks.0.skip_conv.weight",
        "decoder/level1_output/kernel": "up_blocks.0.skip_conv.weight",
        "decoder/level0_output/kernel": "conv_out.weight",
    }.items():
        np.testing.assert_array_equal(ours[mine], theirs[name].transpose(2, 3, 1, 0))
    for mine, name in {
        "condition/frequencies": "time_proj.weight",
        "decoder/level1_output_norm/scale": "up_blocks.0.skip_norm.weight",
        "decoder/level0_output_norm/bias": "conv_norm_out.bias",
        "decoder/level1_attention/value/bias": "up_blocks.0.attentions.0.to_v.bias",
    }.items():
        np.testing.assert_array_equal(ours[mine], theirs[name])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_both_generations_of_names_and_other_precisions(tmp_path: Path, dtype: Any):
    theirs = {name: array.astype(dtype) for name, array in arrays_of(NCSNPP_SHAPES).items()}
    new = diffusers.read(write(tmp_path, NCSNPP, theirs), ncsnpp_spec()).ema
    older = {}
    for name, array in theirs.items():
        for old, part in NEW.items():
            name = name.replace(f".{part}.", f".{old}.")
        older["time_proj.W" if name == "time_proj.weight" else name] = array
    assert older.keys() != theirs.keys()
    old = diffusers.read(write(tmp_path, NCSNPP, older), ncsnpp_spec()).ema
    assert old.keys() == new.keys()
    for path, array in old.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, new[path])


def test_arrays_that_do_not_fit_are_all_listed(tmp_path: Path):
    theirs = arrays_of(DDPM_SHAPES)
    del theirs["mid_block.resnets.0.conv1.bias"]
    theirs["conv_out.weight"] = theirs["conv_out.weight"][:, :, :2]
    theirs["add_embedding.weight"] = np.zeros((3, 3), np.float32)
    # A second query, under the older name, that says something else.
    theirs["mid_block.attentions.0.query.bias"] = np.zeros(64, np.float32)
    spec = ddpm_spec()
    ours = diffusers.read(write(tmp_path, DDPM, theirs), spec).ema
    with pytest.raises(UserError) as caught:
        fit(ours, networks.abstract(partial(UNet, spec))[1], tmp_path)
    for part in (
        "middle/block0/conv0/bias",
        "head/kernel (2, 3, 32, 3) for (3, 3, 32, 3)",
        "add_embedding.weight",
        "mid_block.attentions.0.",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "most_likely"),
    [
        ({"num_blocks": 2}, "config.model.num_blocks = 1 (layers_per_block in config.json)"),
        (
            {"attention_resolutions": (8, 4)},
            "config.model.attention_resolutions = (4,) (down_block_types, up_block_types in "
            "config.json)",
        ),
        ({"width": 64}, "config.model.width = 32 (block_out_channels in config.json)"),
        (
            {"multipliers": (1, 3)},
            "config.model.multipliers = (1, 2) (block_out_channels in config.json)",
        ),
        ({"channels": 1}, "config.data.channels = 3 (in_channels, out_channels in config.json)"),
        ({}, ""),
    ],
)
def test_weights_that_contradict_their_config_name_its_key(
    tmp_path: Path, changes: dict[str, Any], most_likely: str
):
    write(tmp_path, DDPM, arrays_of(DDPM_SHAPES))
    assert diffusers.read(tmp_path, ddpm_spec(**changes)).hint() == most_likely


def test_the_key_of_weights_with_the_other_blocks(tmp_path: Path):
    older = {name.replace("to_q", "query"): a for name, a in arrays_of(NCSNPP_SHAPES).items()}
    write(tmp_path, NCSNPP, older)
    assert diffusers.read(tmp_path, ncsnpp_spec(num_classes=10)).hint() == ""  # one array, listed
    told = diffusers.read(tmp_path, ncsnpp_spec(num_blocks=2)).hint()
    assert told == "config.model.num_blocks = 1 (layers_per_block in config.json)"


def test_flipped_sines_are_moved_to_where_ours_are(tmp_path: Path):
    theirs, flipped = arrays_of(DDPM_SHAPES), {**DDPM, "flip_sin_to_cos": True}
    ours = diffusers.read(write(tmp_path, flipped, theirs), ddpm_spec()).ema
    kernel = theirs["time_embedding.linear_1.weight"].T
    np.testing.assert_array_equal(
        ours["condition/dense0/kernel"], np.concatenate([kernel[16:], kernel[:16]])
    )


def test_shards_and_half_precision(tmp_path: Path):
    theirs = arrays_of(DDPM_SHAPES)
    whole = diffusers.read(write(tmp_path, DDPM, theirs), ddpm_spec()).ema
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert diffusers.read(tmp_path, ddpm_spec()).ema.keys() == whole.keys()
    names = sorted(theirs)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: theirs[name] for name in part}, tmp_path / file)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    sharded = diffusers.read(tmp_path, ddpm_spec()).ema
    assert sharded.keys() == whole.keys()
    np.testing.assert_array_equal(sharded["stem/kernel"], whole["stem/kernel"])
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "weight_map" in refusal(tmp_path, ddpm_spec())


def test_weights_that_are_none(tmp_path: Path):
    path = write(tmp_path, DDPM, arrays_of(DDPM_SHAPES)) / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:5], b"", b"\xff" * 1000, b"PK\x03\x04" + whole):
        path.write_bytes(damaged)
        assert f"{path} cannot be read" in refusal(tmp_path, ddpm_spec())
    path.unlink()
    os.mkfifo(path)  # is waited for by nobody
    assert f"{path} is missing" in refusal(tmp_path, ddpm_spec())
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": path.name}}))
    assert f"{path} cannot be read: it is missing, or no file" in refusal(tmp_path, ddpm_spec())
    path.unlink()
    index.unlink()
    save_file({"conv_in.bias": np.zeros(32, np.int32)}, path)
    assert "conv_in.bias is I32; allowed are F32" in refusal(tmp_path, ddpm_spec())
    assert load_file(path).keys() == {"conv_in.bias"}
