"""Reads OpenAI's improved-diffusion and guided-diffusion (`.pt`): the state dicts of one U-Net
(Nichol, Dhariwal 2021, arXiv:2102.09672; Dhariwal, Nichol 2021, arXiv:2105.05233).

The shapes of the arrays say most of the network: `settings` returns that. What no array shows was
given to OpenAI's commands as flags. `PUBLISHED` has those of the published files, by their names;
`likely` returns the defaults, for other files, and `choices` the values of two flags. One flag is
not of the network: in which order the arrays of an attention have its queries, keys and values
(`from_state`).

A network of these is ours with `decoder_attention = "every"`: with `block = "adm"` where residual
blocks resample, else with `block = "ddpm"`.
"""

import itertools
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.convert.diffusers import our_array
from score_sde.convert.foreign import Foreign
from score_sde.errors import UserError
from score_sde.networks import UNetSpec
from score_sde.networks.plan import plan

Shapes = Mapping[str, tuple[int, ...]]


class Flags(NamedTuple):
    """What no array shows, by the names of OpenAI's flags; sizes of 0 are unknown. The defaults are
    those of both repositories. Of `rescale_timesteps` it is that of guided-diffusion.

    Attributes:
        image_size: height and width.
        noise_schedule: "linear" or "cosine".
        diffusion_steps: levels of the chain.
        num_heads: of each attention.
        num_head_channels: channels of a head; 0 for `num_heads` heads.
        rescale_timesteps: the network gets the level times 1000 / diffusion_steps.
        predict_xstart: the network returns the denoised images, not the noise.
        use_new_attention_order: see `from_state`.
    """

    image_size: int = 0
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    num_heads: int = 4
    num_head_channels: int = 0
    rescale_timesteps: bool = False
    predict_xstart: bool = False
    use_new_attention_order: bool = False

    def settings(self) -> dict[str, Any]:
        """The same by the keys of a config."""
        process: dict[str, Any] = {"sde.name": "cosine"}
        if self.noise_schedule == "linear":
            process = {"sde.name": "vp", "sde.beta_min": 0.1, "sde.beta_max": 20.0}
        return {
            **process,
            **({"data.image_size": self.image_size} if self.image_size else {}),
            "model.num_levels": self.diffusion_steps,
            "model.num_heads": self.num_heads,
            "model.head_width": self.num_head_channels,
            "model.level_scale": 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0,
            "model.parameterization": "denoised" if self.predict_xstart else "epsilon",
        }


_64 = Flags(64, "cosine", 4000)
_RESCALED = _64._replace(rescale_timesteps=True)
_CIFAR = _RESCALED._replace(image_size=32)
_LSUN, _256 = Flags(256, num_heads=1), Flags(256, num_head_channels=64)
# The flags that the two repositories' READMEs give for each file.
PUBLISHED: dict[str, Flags] = {
    "cifar10_uncond_50M_500K.pt": _CIFAR,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR,
    "imagenet64_uncond_100M_1500K.pt": _RESCALED,
    "imagenet64_uncond_vlb_100M_1500K.pt": _RESCALED,
    "imagenet64_cond_270M_250K.pt": _64,
    "lsun_uncond_100M_1200K_bs128.pt": _LSUN,
    "lsun_uncond_100M_2400K_bs64.pt": _LSUN,
    "64x64_diffusion.pt": Flags(64, "cosine", num_head_channels=64, use_new_attention_order=True),
    "128x128_diffusion.pt": Flags(128),
    "256x256_diffusion.pt": _256,
    "256x256_diffusion_uncond.pt": _256,
    "512x512_diffusion.pt": _256._replace(image_size=512),
    "lsun_bedroom.pt": _256,
    "lsun_cat.pt": _256,
    "lsun_horse.pt": _256,
    "lsun_horse_nodropout.pt": _256,
}
# Each level's width over the first's, by which OpenAI's commands take it from the image size.
IMAGE_SIZES = {
    (1, 2, 2, 2): 32,
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 2, 2, 4, 4, 8, 8): 512,
}
# What all of these networks have.
SETTINGS: dict[str, Any] = {
    "name": "unet",
    "resample_with_conv": True,
    "symmetric_padding": True,
    "decoder_attention": "every",
    "activation": "swish",
    "norm_groups": 32,
    "norm_eps": 1e-5,
    "conditional": True,
    "embedding": "vaswani",
    "skip_rescale": False,
    "fir": False,
    "progressive_input": "none",
    "progressive_output": "none",
    "centered": True,
    "input_frequencies": (),
    "condition": "time",
    "sigma_data": 1.0,  # the output is of images as they are
}
# The names inside of each kind of block.
PARTS: dict[str, dict[str, str]] = {
    "residual": {
        "in_layers.0": "norm0",
        "in_layers.2": "conv0",
        "emb_layers.1": "embedding",
        "out_layers.0": "norm1",
        "out_layers.3": "conv1",
        "skip_connection": "shortcut",
    },
    "attention": {
        "norm": "norm",
        **{f"qkv.{part}": part for part in ("query", "key", "value")},  # as `_split` names them
        "proj_out": "output",
    },
    "down": {"op": "conv"},
    "up": {"conv": "conv"},
}


def is_one(names: object) -> bool:
    """Whether arrays of these names are of these networks."""
    both = ("time_embed.0.weight", "input_blocks.0.0.weight")
    return isinstance(names, Collection) and all(name in names for name in both)


def has_new_order(source: Path) -> bool:
    """Whether a file is a published one with `use_new_attention_order`."""
    return PUBLISHED.get(source.name, Flags()).use_new_attention_order


def settings(source: Path, shapes: Shapes, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Return the settings of ours that a file says, by their keys in a config.

    Args:
        source: the file, whose name may be a published one's.
        shapes: of its arrays.
        image_size: of the network; 0 for unknown.

    Raises:
        UserError: one line: a network that ours cannot be, or a size of images that is not known.
    """
    model = _architecture(source, shapes)
    flags = PUBLISHED[source.name].settings() if source.name in PUBLISHED else {}
    size = flags.get("data.image_size") or image_size or IMAGE_SIZES.get(model["multipliers"], 0)
    if not size:
        raise UserError(f"config.data.image_size: missing; {source} does not say it")
    least = min(size) if isinstance(size, tuple) else size
    model["attention_resolutions"] = tuple(least // 2**level for level in model.pop("attended"))
    data = {key: model.pop(key) for key in ("channels", "num_classes")}
    return {
        **{f"model.{key}": value for key, value in (SETTINGS | model).items()},
        **{f"data.{key}": value for key, value in data.items()},
        **flags,
    }


def likely(source: Path, shapes: Shapes, num_levels: int) -> dict[str, Any]:
    """Return the settings that a file of an unknown name most likely has, by their keys in a
    config: the defaults of OpenAI's commands.

    Args:
        source: the file.
        shapes: of its arrays.
        num_levels: of its chain; what is not positive stands for the default.
    """
    if source.name in PUBLISHED:
        return {}
    model = _architecture(source, shapes)
    flags = Flags(
        IMAGE_SIZES.get(model["multipliers"], 0),
        diffusion_steps=num_levels if num_levels > 0 else Flags().diffusion_steps,
        # Blocks that resample are of guided-diffusion. Networks without them are of either
        # repository. It is True in improved-diffusion, which has no others.
        rescale_timesteps=model["block"] == "ddpm",
    )
    return flags.settings()


def choices(source: Path, num_levels: int) -> dict[str, tuple[Any, Any]]:
    """Return what `rescale_timesteps` and `predict_xstart` set in a config, by the keys there: the
    values without the flag and with it. A published file leaves no choice.

    Args:
        source: the file.
        num_levels: of its chain; 0 for none, where both scales are 1.
    """
    if source.name in PUBLISHED:
        return {}
    steps = num_levels or Flags().diffusion_steps
    without = Flags(diffusion_steps=steps)
    given = without._replace(rescale_timesteps=True, predict_xstart=True)
    before, after = without.settings(), given.settings()
    keys = ("model.level_scale", "model.parameterization")
    return {key: (before[key], after[key]) for key in keys}


def _architecture(source: Path, shapes: Shapes) -> dict[str, Any]:
    """The network's settings that the shapes say; `attended` are the levels with attention."""

    def wide(name: str, axis: int = 0) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis or not shape[axis]:
            raise _refused(source, f"its array {name} is {shape or 'missing'}")
        return shape[axis]

    def numbers(name: str) -> list[int]:
        found = (re.fullmatch(name.replace("N", "([0-9]{1,3})"), key) for key in shapes)
        return sorted(int(match[1]) for match in found if match)

    width, channels = wide("input_blocks.0.0.weight"), wide("input_blocks.0.0.weight", 1)
    count = len(numbers(r"output_blocks\.N\.0\.in_layers\.0\.weight"))
    if not count:
        raise _refused(source, "it is a classifier")
    outputs = wide("out.2.weight")
    if channels == 6:  # theirs have images of three channels
        raise _refused(source, "it enlarges images: it reads one of low resolution, too")
    if outputs not in (channels, 2 * channels):
        raise _refused(source, f"it reads {channels} channels and returns {outputs}")
    # A level of the decoder ends where it doubles the image; one of the encoder has as many parts.
    ends = numbers(r"output_blocks\.N\.[12]\.(?:conv|in_layers\.0)\.weight")
    parts = min(ends[0] + 1 if ends else count, count)
    first = [f"input_blocks.{1 + level * parts}" for level in range(count // parts)]
    widths = [wide(f"{block}.0.out_layers.0.weight") for block in first]
    if any(each % width for each in widths):
        raise _refused(source, f"its levels have {widths} channels, no multiples of {width}")
    features = wide("time_embed.0.weight", 1)
    resamples = any(f"output_blocks.{parts - 1}.{n}.in_layers.0.weight" in shapes for n in (1, 2))
    doubled = wide("middle_block.0.emb_layers.1.weight") == 2 * widths[-1]
    labels = "label_emb.weight"
    classes = wide(labels) if labels in shapes else 0
    return {
        "width": width,
        "multipliers": tuple(each // width for each in widths),
        "num_blocks": parts - 1,
        "block": "adm" if resamples else "ddpm",
        "scale_shift": doubled,
        "attended": [n for n, block in enumerate(first) if f"{block}.1.qkv.weight" in shapes],
        "embedding_features": 0 if features == width else features,
        "class_conditional": bool(classes),
        "learned_variance": outputs == 2 * channels,
        "channels": channels,
        "num_classes": classes,
    }


def _refused(source: Path, why: str) -> UserError:
    return UserError(
        f"--source {source}: {why}; allowed are the diffusion models of improved-diffusion and "
        "guided-diffusion"
    )


def from_state(state: Mapping[str, Any], spec: UNetSpec, new_order: bool) -> Foreign:
    """Return the parameters under our names where they have one.

    Args:
        state: what the file holds, see `torch_zip.load`.
        spec: our network of the file's `settings`.
        new_order: an attention's array has the queries of all heads, then the keys, then the values
            (`use_new_attention_order`). False: the query, key and value of each head together.

    Returns:
        one set of parameters, as `ema`, float32. An array without a place in our network keeps its
        name. The comparison with the network then lists it.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            arrays |= _split(name, value, spec, new_order)
    placed = partial(our_array, places=names(spec), plain=spec.block == "ddpm", flipped=True)
    params = dict(placed(name, array) for name, array in arrays.items())
    return Foreign(ema=params, params=None, mu=None, nu=None, step=0)


def _split(name: str, array: np.ndarray, spec: UNetSpec, new_order: bool) -> dict[str, np.ndarray]:
    """An array by its name; that of an attention's three maps as three, those of a map along the
    pixels without the axis of its one."""
    module, _, leaf = name.rpartition(".")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels, rest = divmod(len(array) if array.ndim else 0, 3)
    head = spec.head_width or channels // spec.num_heads
    if not module.endswith(".qkv") or rest or not head or channels % head:
        return {name: array}
    if new_order:
        parts = np.split(array, 3)
    else:
        each = array.reshape(-1, 3, head, *array.shape[1:])
        parts = [each[:, part].reshape(channels, *array.shape[1:]) for part in range(3)]
    return {
        f"{module}.{part}.{leaf}": value
        for part, value in zip(("query", "key", "value"), parts, strict=True)
    }


def names(spec: UNetSpec) -> dict[str, str]:
    """Return the path of ours for each module of the network with these settings."""
    places = {
        "time_embed.0": "condition/dense0",
        "time_embed.2": "condition/dense1",
        "label_emb": "labels",
        "input_blocks.0.0": "stem",
        "out.0": "head_norm",
        "out.2": "head",
    }
    inputs, outputs = itertools.count(1), itertools.count()
    where, number = "", 0
    for block in plan(spec):
        if block.kind not in PARTS:
            continue
        # Each of theirs is a residual block or a resampling one, with what follows it.
        if block.path.startswith("encoder/") and block.kind != "attention":
            where, number = f"input_blocks.{next(inputs)}", 0
        elif block.reads:
            where, number = f"output_blocks.{next(outputs)}", 0
        elif block.path == "middle/block0":
            where, number = "middle_block", 0
        for theirs, ours in PARTS[block.kind].items():
            places[f"{where}.{number}.{theirs}"] = f"{block.path}/{ours}"
        number += 1
    return places
