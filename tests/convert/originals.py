"""The recorded networks of the original code bases, through the converters."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import build, convert, networks
from score_sde.config import default
from score_sde.validation import validate

NAMES = (
    "flax_subvp_ddpmpp_continuous",
    "flax_ve_ncsnpp_pyramid",
    "subvp_ddpmpp_continuous",
    "ve_ncsnpp_continuous",
    "ve_ncsnpp_discrete",
    "ve_ncsnpp_options",
    "ve_ncsnpp_pyramid",
    "vp_ddpm_discrete",
    "vp_ddpmpp_continuous",
)
PREDICTORS = {"ancestral_sampling": "ancestral"}


class Original(NamedTuple):
    """A recorded network.

    `config` is the original's in our words, `apply` our network of it, `params` and `raw_params`
    the averaged and the trained parameters, `arrays` what was recorded.
    """

    config: ConfigDict
    apply: networks.Apply
    params: Any
    raw_params: Any
    arrays: dict[str, np.ndarray]


def source(directory: Path, name: str) -> Path:
    return directory / f"{name}{'.flax' if name.startswith('flax') else '.pth'}"


def describe(directory: Path, name: str) -> ConfigDict:
    """The original's config of a recorded network, in our words."""
    original = json.loads((directory / f"{name}.json").read_text())["config"]
    model, training, sampling = (original[key] for key in ("model", "training", "sampling"))
    plain, ve = model["name"] == "ddpm", training["sde"] == "vesde"
    config = default()
    config.data.name = "celeba"  # of three channels and any size
    config.data.image_size = original["data"]["image_size"]
    config.sde.name = training["sde"].removesuffix("sde")
    for key in ("sigma_min", "sigma_max", "beta_min", "beta_max"):
        config.sde[key] = float(model[key])
    ours = config.model
    ours.width = model["nf"]
    ours.multipliers = tuple(model["ch_mult"])
    ours.num_blocks = model["num_res_blocks"]
    ours.attention_resolutions = tuple(model["attn_resolutions"])
    ours.resample_with_conv = model["resamp_with_conv"]
    ours.activation = model["nonlinearity"]
    ours.dropout = model["dropout"]
    ours.conditional = model["conditional"]
    ours.centered = original["data"]["centered"]
    ours.block = "ddpm" if plain else model["resblock_type"]
    ours.norm_groups = 32 if plain else 0
    # The plain network reads nothing of these.
    ours.embedding = "positional" if plain else model["embedding_type"]
    ours.skip_rescale = model.get("skip_rescale", False)
    ours.fir = model.get("fir", False)
    ours.progressive_output = model.get("progressive", "none")
    ours.progressive_input = model.get("progressive_input", "none")
    ours.combine = model.get("progressive_combine", "sum")
    ours.parameterization = "score" if ve else "epsilon"
    ours.num_levels = 0 if training["continuous"] else model["num_scales"]
    ours.condition = "log_sigma" if ve and training["continuous"] else "time"
    config.training.reduce_mean = training["reduce_mean"]
    config.sampling.method = "pc"
    config.sampling.predictor = PREDICTORS.get(sampling["predictor"], sampling["predictor"])
    config.sampling.corrector = sampling["corrector"]
    config.sampling.snr = sampling["snr"]
    config.sampling.faithful = True
    validate(config)
    return config


def spec_of(config: ConfigDict) -> networks.UNetSpec:
    """The network of a config."""
    (spec,) = build.network(config, build.dataset(config)).args
    return spec


def load(directory: Path, name: str, dtype: Any = jnp.float32) -> Original:
    """A recorded network, its parameters and computation in `dtype`."""
    config = describe(directory, name)
    spec = spec_of(config)
    apply, expected = networks.abstract(partial(networks.UNet, replace(spec, dtype=dtype)))
    path = source(directory, name)
    foreign = convert.read(path, spec)
    params, raw = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), convert.fit(flat, expected, path))
        for flat in (foreign.ema, foreign.params)
    )
    with np.load(directory / f"{name}.npz") as arrays:
        return Original(config, apply, params, raw, dict(arrays))
