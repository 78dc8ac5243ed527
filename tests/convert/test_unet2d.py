"""What a folder of diffusers' `UNet2DModel` says of its network and its process."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from configs import ve_256, ve_1024, vp_cifar10
from score_sde import build
from score_sde.config import flat
from score_sde.convert import diffusers
from score_sde.errors import UserError
from score_sde.schema import SCHEMA
from tests.convert.diffusers_folders import (
    DDPM,
    DDPM_SHAPES,
    NCSNPP,
    arrays_of,
    ddpm_spec,
    refusal,
    write,
)
from tests.convert.originals import spec_of


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
        (DDPM, "sample_size", [8, 16]),
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
