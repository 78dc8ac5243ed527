"""Folders of diffusers' `UNet2DModel`, written here by hand (tests/parity has the class itself)."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import ve_256, ve_1024, vp_cifar10
from score_sde import build, networks
from score_sde.config import flat
from score_sde.convert import diffusers
from score_sde.convert.fit import fit
from score_sde.errors import UserError
from score_sde.networks import UNet, UNetSpec
from score_sde.schema import SCHEMA
from tests.convert.originals import spec_of

Shapes = dict[str, tuple[int, ...]]

# As google/ddpm-cifar10-32 and google/ncsnpp-church-256, but for their sizes.
DDPM: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
NCSNPP = {
    **DDPM,
    "block_out_channels": [32, 128],
    "center_input_sample": True,
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.41421356237,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
}
NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def small(config: Any, **changes: Any) -> UNetSpec:
    """A preset's network, with two levels of one block and attention on the second."""
    small = {"image_size": 8, "width": 32, "num_blocks": 1, "attention_resolutions": (4,)}
    return replace(spec_of(config), **small | changes)


def ddpm_spec(**changes: Any) -> UNetSpec:
    config = vp_cifar10.get_config("ddpm_diffusers")
    return small(config, **{"multipliers": (1, 2), **changes})


def ncsnpp_spec(**changes: Any) -> UNetSpec:
    return small(ve_256.get_config("church"), **{"multipliers": (1, 4), **changes})


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv(name: str, out: int, channels: int, size: int = 3) -> Shapes:
    return layer(name, out, channels, size, size)


def residual(name: str, channels: int, out: int, shortcut: bool | None = None) -> Shapes:
    shapes = {
        **layer(f"{name}.norm1", channels),
        **conv(f"{name}.conv1", out, channels),
        **layer(f"{name}.time_emb_proj", out, 128),
        **layer(f"{name}.norm2", out),
        **conv(f"{name}.conv2", out, out),
    }
    if channels != out if shortcut is None else shortcut:
        shapes |= conv(f"{name}.conv_shortcut", out, channels, 1)
    return shapes


def attention(name: str, width: int) -> Shapes:
    shapes = layer(f"{name}.group_norm", width)
    for part in NEW.values():
        shapes |= layer(f"{name}.{part}", width, width)
    return shapes


def ends_and_middle(wide: int, features: int) -> Shapes:
    return {
        **conv("conv_in", 32, 3),
        **layer("time_embedding.linear_1", 128, features),
        **layer("time_embedding.linear_2", 128, 128),
        **residual("mid_block.resnets.0", wide, wide),
        **attention("mid_block.attentions.0", wide),
        **residual("mid_block.resnets.1", wide, wide),
        **layer("conv_norm_out", 32),
        **conv("conv_out", 3, 32),
    }


DDPM_SHAPES = {
    **ends_and_middle(64, 32),
    **residual("down_blocks.0.resnets.0", 32, 32),
    **conv("down_blocks.0.downsamplers.0.conv", 32, 32),
    **residual("down_blocks.1.resnets.0", 32, 64),
    **attention("down_blocks.1.attentions.0", 64),
    **residual("up_blocks.0.resnets.0", 128, 64),
    **attention("up_blocks.0.attentions.0", 64),
    **residual("up_blocks.0.resnets.1", 96, 64),
    **attention("up_blocks.0.attentions.1", 64),
    **conv("up_blocks.0.upsamplers.0.conv", 64, 64),
    **residual("up_blocks.1.resnets.0", 96, 32),
    **residual("up_blocks.1.resnets.1", 64, 32),
}
NCSNPP_SHAPES = {
    **ends_and_middle(128, 64),
    "time_proj.weight": (32,),
    **residual("down_blocks.0.resnets.0", 32, 32),
    **residual("down_blocks.0.resnet_down", 32, 32, shortcut=True),
    **conv("down_blocks.0.skip_conv", 32, 3, 1),
    **residual("down_blocks.1.resnets.0", 32, 128),
    **attention("down_blocks.1.attentions.0", 128),
    **residual("up_blocks.0.resnets.0", 256, 128),
    **residual("up_blocks.0.resnets.1", 160, 128),
    **attention("up_blocks.0.attentions.0", 128),
    **residual("up_blocks.0.resnet_up", 128, 128, shortcut=True),
    **layer("up_blocks.0.skip_norm", 128),
    **conv("up_blocks.0.skip_conv", 3, 128),
    **residual("up_blocks.1.resnets.0", 160, 32),
    **residual("up_blocks.1.resnets.1", 64, 32),
}


def arrays_of(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder: Path, settings: Any, arrays: dict[str, np.ndarray]) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
    return folder


def refusal(folder: Path, spec: UNetSpec) -> str:
    with pytest.raises(UserError) as caught:
        diffusers.read(folder, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_the_settings_are_those_of_the_files(tmp_path: Path):
    """Everything that stands in no array is taken from them."""
    write(tmp_path, DDPM, {})
    found = diffusers.settings(tmp_path, 0)
    spec = ddpm_spec()
    names = {key.removeprefix("model.") for key in found if key.startswith("model.")}
    shown = {"name", "class_conditional"}
    # What is left acts in training alone, or belongs to the blocks that this network has not.
    others = {"dropout", "init_scale", "fourier_scale", "remat", "dtype", "combine"}
    assert names - shown == (MODEL & vars(spec).keys()) - others
    assert {key: found[f"model.{key}"] for key in names - shown} == {
        key: getattr(spec, key) for key in names - shown
    }
    sizes = {"image_size": 8, "channels": 3, "num_classes": 0}
    assert {key: found[f"data.{key}"] for key in sizes} == sizes
    assert not found["model.class_conditional"] and "sde.name" not in found


MODEL = {row.key.removeprefix("model.") for row in SCHEMA.values() if row.key.startswith("model.")}

# What UNet2DModel(**these) is: the class's own defaults stand for the rest.
TUTORIAL = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def test_the_class_defaults_are_settings_of_ours(tmp_path: Path):
    write(tmp_path, TUTORIAL, {})
    found = diffusers.settings(tmp_path, 0)
    expected = {
        "head_width": 8,
        "norm_eps": 1e-5,
        "embedding": "vaswani",
        "symmetric_padding": True,
        "num_blocks": 2,
        "norm_groups": 32,
        "multipliers": (1, 2),
        "attention_resolutions": (8,),
    }
    assert {key: found[f"model.{key}"] for key in expected} == expected
    # One head as wide as the only layer with attention is our 0, as for the published networks.
    write(tmp_path, {**TUTORIAL, "attention_head_dim": 64}, {})
    assert diffusers.settings(tmp_path, 0)["model.head_width"] == 0


def test_flipped_sines_are_moved_to_where_ours_are(tmp_path: Path):
    theirs, flipped = arrays_of(DDPM_SHAPES), {**DDPM, "flip_sin_to_cos": True}
    ours = diffusers.read(write(tmp_path, flipped, theirs), ddpm_spec()).ema
    kernel = theirs["time_embedding.linear_1.weight"].T
    np.testing.assert_array_equal(
        ours["condition/dense0/kernel"], np.concatenate([kernel[16:], kernel[:16]])
    )


def test_a_pipeline_leads_to_its_network_and_scheduler(tmp_path: Path):
    theirs = arrays_of(DDPM_SHAPES)
    for name in ("unet", "unet_ema", "scheduler"):
        (tmp_path / name).mkdir()
    write(tmp_path / "unet", DDPM, theirs)
    write(tmp_path / "unet_ema", DDPM, {})
    (tmp_path / "model_index.json").write_text("{}")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    text = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
    file.write_text(json.dumps(text))
    for source in (tmp_path, tmp_path / "unet", tmp_path / "unet_ema"):
        assert diffusers.scheduler_file(source) == file
        assert diffusers.settings(source, 0)["model.parameterization"] == "velocity"
    assert diffusers.read(tmp_path, ddpm_spec()).ema.keys() == (
        diffusers.read(tmp_path / "unet", ddpm_spec()).ema.keys()
    )
    file.write_text(json.dumps({"_class_name": "ScoreSdeVeScheduler"}))
    with pytest.raises(UserError, match="time_embedding_type fourier"):
        diffusers.settings(tmp_path, 0)


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


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        (DDPM, "attention_head_dim", 7),
        (DDPM, "attention_head_dim", True),
        (DDPM, "norm_eps", 0.0),
        (DDPM, "norm_eps", "1e-6"),
        (DDPM, "act_fn", "mish"),
        (DDPM, "downsample_padding", 2),
        (DDPM, "downsample_type", "resnet"),
        (DDPM, "upsample_type", "resnet"),
        (DDPM, "freq_shift", 2),
        (DDPM, "flip_sin_to_cos", None),
        (DDPM, "resnet_time_scale_shift", "scale_shift"),
        (DDPM, "time_embedding_type", "learned"),
        (DDPM, "time_embedding_dim", 64),
        (DDPM, "class_embed_type", "timestep"),
        (DDPM, "mid_block_type", None),
        (DDPM, "mid_block_scale_factor", 2),
        (DDPM, "add_attention", False),
        (DDPM, "attn_norm_num_groups", 16),
        (DDPM, "out_channels", 6),
        (DDPM, "sample_size", [8, 16, 8]),
        (DDPM, "sample_size", "8"),
        (DDPM, "block_out_channels", [32, 48]),
        (DDPM, "block_out_channels", [32, 64, 64]),
        (DDPM, "block_out_channels", "32"),
        (DDPM, "block_out_channels", [2**70, 2**70]),
        (DDPM, "block_out_channels", [32] * 10**5),
        (DDPM, "sample_size", None),
        (DDPM, "num_class_embeds", -1),
        (DDPM, "layers_per_block", 1.5),
        (DDPM, "down_block_types", ["DownBlock2D", "ResnetDownsampleBlock2D"]),
        (DDPM, "up_block_types", ["UpBlock2D", "AttnUpBlock2D"]),
        (DDPM, "up_block_types", ["AttnSkipUpBlock2D", "SkipUpBlock2D"]),
        (NCSNPP, "mid_block_scale_factor", 1),
        (NCSNPP, "norm_num_groups", 32),
    ],
)
def test_networks_that_ours_cannot_be(tmp_path: Path, settings: Any, key: str, value: Any):
    write(tmp_path, {**settings, key: value}, {})
    with pytest.raises(UserError) as caught:
        diffusers.settings(tmp_path, 0)
    told = str(caught.value)
    assert key in told and str(tmp_path / "config.json") in told
    assert "\n" not in told and len(told) < 1000


def test_narrow_attention_of_skip_blocks_is_refused(tmp_path: Path):
    write(tmp_path, {**NCSNPP, "block_out_channels": [32, 64]}, {})
    with pytest.raises(UserError, match="32 groups"):
        diffusers.settings(tmp_path, 0)


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (
            {
                **DDPM,
                "block_out_channels": [128, 256, 256, 256],
                "down_block_types": ["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2],
                "up_block_types": [*["UpBlock2D"] * 2, "AttnUpBlock2D", "UpBlock2D"],
                "layers_per_block": 2,
                "sample_size": 32,
            },
            vp_cifar10.get_config("ddpm_diffusers"),
        ),
        (
            {
                **NCSNPP,
                "block_out_channels": [128, 128, *[256] * 5],
                "down_block_types": [
                    *["SkipDownBlock2D"] * 4,
                    "AttnSkipDownBlock2D",
                    *["SkipDownBlock2D"] * 2,
                ],
                "up_block_types": [
                    *["SkipUpBlock2D"] * 2,
                    "AttnSkipUpBlock2D",
                    *["SkipUpBlock2D"] * 4,
                ],
                "layers_per_block": 2,
                "sample_size": 256,
            },
            ve_256.get_config("church"),
        ),
        (
            {
                **NCSNPP,
                "block_out_channels": [16, 32, 64, 128, 256, *[512] * 3],
                "down_block_types": [
                    *["SkipDownBlock2D"] * 6,
                    "AttnSkipDownBlock2D",
                    "SkipDownBlock2D",
                ],
                "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 6],
                "layers_per_block": 1,
                "sample_size": 1024,
            },
            ve_1024.get_config("ffhq"),
        ),
    ],
    ids=["ddpm-cifar10-32", "ncsnpp-church-256", "ncsnpp-ffhq-1024"],
)
def test_the_published_folders_are_our_presets(tmp_path: Path, settings: Any, config: Any):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found, ours = diffusers.settings(tmp_path, 0), flat(config)
    assert {key: ours[key] for key in found if not key.startswith("data.")} == {
        key: value for key, value in found.items() if not key.startswith("data.")
    }
    shape = (found["data.image_size"], found["data.image_size"], found["data.channels"])
    assert build.dataset(config).shape == shape
    told = refusal(tmp_path, spec_of(config))
    assert told.startswith(f"{tmp_path / 'diffusion_pytorch_model.safetensors'} is missing")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        ("pipe", "cannot be read"),
        ("{", "is no JSON"),
        ("\xff", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "allowed are JSON objects"),
        ('{"_class_name": "UNet2DConditionModel"}', "is not the config.json"),
        (" " * 2**21, "allowed are JSON objects of up to 1048576 bytes"),
    ],
)
def test_config_json_that_is_none(tmp_path: Path, text: str | None, expected: str):
    if text == "pipe":
        os.mkfifo(tmp_path / "config.json")
    elif text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=expected) as caught:
        diffusers.settings(tmp_path, 0)
    assert "\n" not in str(caught.value)


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
