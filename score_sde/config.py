"""The schema of a run: its keys with their types and defaults.

A preset (`configs/*.py`) is `default()` with some values changed. `checks` knows what the values
may be. Neither imports JAX: a mistake is told before anything starts.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ml_collections import ConfigDict, config_dict


def default() -> ConfigDict:
    """Return the schema with its defaults, locked: setting an unknown key raises AttributeError."""
    config = ConfigDict()
    config.name = ""  # the preset's file and variant; the command line sets it
    config.seed = 0  # of training: initial weights, order of the data, noise
    config.data = ConfigDict(
        {
            "name": "digits",
            "dir": "",
            "image_size": 0,  # 0: the set's own; another one only for sets that cannot be read
            "flip": False,
        }
    )
    config.sde = ConfigDict(
        {"name": "vp", "beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50.0}
    )
    config.model = _model()
    config.training = _training()
    config.sampling = _sampling()
    config.likelihood = ConfigDict(
        {
            "seed": 0,
            "split": "test",
            "num_images": 0,  # 0: all of the split
            "batch_size": 100,
            "dequantization": "uniform",
            "num_importance": 1,  # dequantizations of each image, of which the bound is made
            "divergence": "rademacher",
            "num_probes": 1,
            "rtol": 1e-5,
            "atol": 1e-5,
            "t_min": 1e-5,
        }
    )
    config.eval = ConfigDict()
    return config.lock()


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "num_blocks": 4,
            "block": "biggan",
            "resample_with_conv": True,  # for block = "ddpm"
            "attention_resolutions": (16,),
            "decoder_attention": "once",
            "dropout": 0.1,
            "activation": "swish",
            "init_scale": 0.0,
            "norm_groups": 0,  # 0: min(C // 4, 32) of C channels
            "conditional": True,  # told the noise level
            "embedding": "positional",
            "fourier_scale": 16.0,
            "skip_rescale": True,
            "fir": False,
            "progressive_input": "none",
            "combine": "sum",  # for progressive_input = "input_skip"
            "progressive_output": "none",
            "input_frequencies": (),
            "class_conditional": False,
            "parameterization": "epsilon",
            "condition": "time",
            "num_levels": 0,  # 0: trained in continuous time; else N of DDPM's or SMLD's chain
            "dtype": "float32",
            "remat": False,
            "centered": True,
        }
    )


def _training() -> ConfigDict:
    return ConfigDict(
        {
            "num_steps": 100_000,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "warmup_steps": 5000,
            "schedule": "constant",
            "gradient_clip": 1.0,
            "beta2": 0.999,
            "weight_decay": 0.0,
            "ema_rate": 0.9999,
            "loss": "paper",
            "reduce_mean": True,  # False: half the sum over an image
            "dequantize": False,
            "t_min": 1e-5,
            "checkpoint_every": 5000,
            "log_every": 50,
            "sample_every": 5000,  # 0: never
        }
    )


def _sampling() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "method": "unipc",
            "num_samples": 64,
            "batch_size": 64,
            # What is unset here and below is the sampler's own.
            "num_steps": config_dict.placeholder(int),
            "denoise": True,
            "t_min": config_dict.placeholder(float),
            "gif": False,
            # pc
            "predictor": "euler_maruyama",
            "corrector": "none",
            "corrector_steps": 1,
            "snr": 0.16,
            "probability_flow": False,
            "faithful": False,
            # ald
            "steps_per_level": 1,
            "step_size": config_dict.placeholder(float),
            "consistent": True,
            # ode
            "solver": "dopri5",
            "step_control": "sample",
            "rtol": 1e-5,
            "atol": 1e-5,
            # ddim, dpmpp, unipc, heun
            "grid": config_dict.placeholder(str),
            "rho": 7.0,
            "eta": 0.0,  # ddim, dpmpp
            "order": config_dict.placeholder(int),  # dpmpp, unipc
            "churn": 0.0,  # this and the next three for heun
            "churn_from": 0.0,
            "churn_to": config_dict.placeholder(float),
            "churn_noise": 1.0,
            # interpolations, which take the settings of ode too
            "num_pairs": 8,
            "num_between": 8,
        }
    )


def check_variant(variant: str, *allowed: str) -> None:
    """Raise ValueError unless a preset has this variant ("" is the preset itself)."""
    if variant and variant not in allowed:
        raise ValueError(f"variant {variant!r}: allowed are {', '.join(allowed) or 'none'}")


def require_variant(variant: str, *allowed: str) -> None:
    """Raise ValueError unless a preset that is nothing by itself has this variant."""
    if not variant:
        raise ValueError(f"a variant is missing (FILE:VARIANT): allowed are {', '.join(allowed)}")
    check_variant(variant, *allowed)


_FAST = ("num_steps", "grid", "rho", "denoise", "t_min")
SAMPLER_KEYS: dict[str, tuple[str, ...]] = {
    "pc": (
        *("num_steps", "predictor", "corrector", "corrector_steps", "snr"),
        *("probability_flow", "faithful", "denoise", "t_min"),
    ),
    "ald": ("num_steps", "steps_per_level", "step_size", "consistent", "denoise", "t_min"),
    "ode": ("solver", "step_control", "rtol", "atol", "num_steps", "denoise", "t_min"),
    "ddim": ("eta", *_FAST),
    "dpmpp": ("order", "eta", *_FAST),
    "unipc": ("order", *_FAST),
    "heun": ("churn", "churn_from", "churn_to", "churn_noise", *_FAST),
}
"""The keys of the section `sampling` that each method reads beside those of all samplers."""


def keys_read(sampling: ConfigDict) -> set[str]:
    """Return the keys of the section `sampling` that its method reads, given the other values."""
    keys, without = set(SAMPLER_KEYS[sampling.method]), set[str]()
    if sampling.method == "ode":
        without = {"rtol", "atol", "step_control"} if sampling.solver == "euler" else {"num_steps"}
    if sampling.corrector == "none":
        without |= {"corrector_steps", "snr"}
    if sampling.grid != "karras" and (sampling.grid or sampling.method != "heun"):
        without |= {"rho"}
    if not sampling.churn:
        without |= {"churn_from", "churn_to", "churn_noise"}
    return keys - without


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config as {"section.key": value}."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a config with the values of some of its keys, given flat, changed.

    A sampler's settings are its own: with another `sampling.method` all of them begin as unset, but
    for the time at which samples are taken.
    """
    config = deepcopy(config)  # ConfigDict(config) would share the sections
    if values.get("sampling.method", config.sampling.method) != config.sampling.method:
        usual = default().sampling
        settings = {key for keys in SAMPLER_KEYS.values() for key in keys} - {"t_min"}
        with config.unlocked():
            config.sampling.update({key: usual[key] for key in settings})
    config.update_from_flattened_dict(values)
    return config
