"""Folders of diffusers' `UNet2DModel`, written here by hand (tests/parity has the class itself)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import ve_256, vp_cifar10
from score_sde.convert import diffusers
from score_sde.errors import UserError
from score_sde.networks import UNetSpec
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
