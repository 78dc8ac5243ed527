"""Reads a diffusers scheduler, `scheduler_config.json`: the process that a network was trained on.

Its classes differ in how they sample. What the network was trained on is the same in most of them:
the N levels of a chain of betas, and what the network's output is. `settings` returns that.
`sampling` returns how the file's DDIM samples, and every key that nothing here takes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from score_sde.convert.foreign import read_json
from score_sde.errors import UserError

FILE = "scheduler_config.json"
MOST_LEVELS = 10_000  # a config lists their betas; the most that is published are 4000

# Classes of one chain, with the same defaults for the keys that a file lacks.
CHAINS = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "LMSDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"),
        *("EulerDiscrete", "EulerAncestralDiscrete"),
    )
)
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    # Nothing of these is trained. The defaults are DDIM's.
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "set_alpha_to_one": True,
}
VE = "ScoreSdeVeScheduler"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "velocity", "sample": "denoised"}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
SPACINGS = ("leading", "trailing", "linspace")


def settings(path: Path) -> dict[str, Any]:
    """Return the settings of ours that a scheduler's file says, by their keys in a config.

    Raises:
        UserError: one line: a file that is none, or a value that our processes cannot express.
    """
    found = read_json(path)
    kind = found.get("_class_name")
    if kind == VE:
        return _ve(found, path)
    if kind not in CHAINS:
        _refuse(path, "_class_name", kind, ", ".join((*CHAINS, VE)))
    get = {key: found.get(key, value) for key, value in DEFAULTS.items()}
    choices: dict[str, tuple[Any, ...]] = {
        "prediction_type": tuple(PREDICTIONS),
        "beta_schedule": SCHEDULES if get["trained_betas"] is None else (get["beta_schedule"],),
        "timestep_spacing": SPACINGS,
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (False,),
    }
    switches = ("rescale_betas_zero_snr", "clip_sample", "thresholding", "set_alpha_to_one")
    for key, values in (choices | dict.fromkeys(switches, (False, True))).items():
        if not any(type(get[key]) is type(each) and get[key] == each for each in values):
            _refuse(path, key, get[key], ", ".join(map(str, values)))
    offset, cut = get["steps_offset"], get["clip_sample_range"]
    if type(offset) is not int or offset < 0:
        _refuse(path, "steps_offset", offset, "0 and positive integers")
    if type(cut) not in (int, float) or not 0 < cut < math.inf:
        _refuse(path, "clip_sample_range", cut, "positive numbers")
    output = PREDICTIONS[get["prediction_type"]]
    if get["rescale_betas_zero_snr"] and output == "epsilon":
        allowed = (
            "v_prediction, sample with rescale_betas_zero_snr, as the noise alone has no image"
        )
        _refuse(path, "prediction_type", get["prediction_type"], allowed)
    return {
        **_process(get, path),
        "model.parameterization": output,
        "model.condition": "time",
        "model.sigma_data": 1.0,  # the output is of images as they are
        "training.loss": "paper",  # the one of a chain
    }


def sampling(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how the DDIM samples that diffusers makes of a scheduler's file.

    Args:
        path: of a file whose `settings` can be had.

    Returns:
        the settings of ours that sample so, by their keys in a config, {} under VE; and what the
        file says beside that and the process, by its own keys.
    """
    found = read_json(path)
    if found["_class_name"] == VE:
        ours, taken = {}, {"sigma_min", "sigma_max"}
    else:
        get, taken = {key: found.get(key, value) for key, value in DEFAULTS.items()}, {*DEFAULTS}
        leading, offset = get["timestep_spacing"] == "leading", get["steps_offset"]
        ours = {"sampling.method": "ddim", "sampling.grid": get["timestep_spacing"]}
        if leading and offset:  # the other grids have none
            ours["sampling.steps_offset"] = offset
        if get["thresholding"]:
            taken -= {"thresholding"}
        else:
            taken |= {"dynamic_thresholding_ratio", "sample_max_value"}
            ours |= {"sampling.clip": get["clip_sample_range"]} if get["clip_sample"] else {}
        if not get["set_alpha_to_one"]:
            if leading and not offset:
                ours["sampling.denoise"] = False  # the last time is that of the level 0
            else:
                taken -= {"set_alpha_to_one"}
    others = {k: v for k, v in found.items() if k not in taken and not k.startswith("_")}
    return ours, others


def _process(get: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The process and the number of its levels."""
    betas = _betas(get, path)
    number = len(betas)
    plain = get["trained_betas"] is None and not get["rescale_betas_zero_snr"]
    low, high = (float(f"{number * betas[end]:.12g}") for end in (0, -1))
    if plain and get["beta_schedule"] == "linear" and 0 < low < high < number:
        return {
            "sde.name": "vp",
            "sde.beta_min": low,
            "sde.beta_max": high,
            "model.num_levels": number,
        }
    middle = betas[:-1]
    if not (np.all(betas > 0.0) and np.all(middle < 1.0) and betas[-1] <= 1.0):
        what = "beta_start, beta_end, beta_schedule" if plain else "its betas"
        raise UserError(f"{path}: {what}: allowed are betas above 0 and below 1")
    return {
        "sde.name": "vp_discrete",
        "sde.betas": tuple(betas.tolist()),
        "model.num_levels": number,
    }


def _betas(get: Mapping[str, Any], path: Path) -> np.ndarray:
    """beta_0 ... beta_{N-1}, float64."""
    number, trained = get["num_train_timesteps"], get["trained_betas"]
    if trained is not None:
        fits = isinstance(trained, list) and 1 < len(trained) <= MOST_LEVELS
        if not fits or not all(type(beta) in (int, float) for beta in trained):
            _refuse(path, "trained_betas", "...", "null, lists of at least 2 numbers")
        betas = np.asarray(trained, np.float64)
        return _rescaled(betas) if get["rescale_betas_zero_snr"] else betas
    if type(number) is not int or not 1 < number <= MOST_LEVELS:
        _refuse(path, "num_train_timesteps", number, f"integers from 2 to {MOST_LEVELS}")
    for key in ("beta_start", "beta_end"):
        if type(get[key]) not in (int, float) or not 0 < get[key] < 1:
            _refuse(path, key, get[key], "numbers above 0 and below 1")
    low, high = get["beta_start"], get["beta_end"]
    match get["beta_schedule"]:
        case "linear":
            betas = np.linspace(low, high, number)
        case "scaled_linear":  # linear in the root
            betas = np.linspace(math.sqrt(low), math.sqrt(high), number) ** 2
        case "sigmoid":
            betas = low + (high - low) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, number)))
        case _:  # the cosine of Nichol and Dhariwal 2021, eq. 17, whose betas end at 0.999
            t = np.arange(number + 1) / number
            alpha2 = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1.0 - alpha2[1:] / alpha2[:-1], 0.999)
    return _rescaled(betas) if get["rescale_betas_zero_snr"] else betas


def _rescaled(betas: np.ndarray) -> np.ndarray:
    """Betas of a chain that ends in pure noise: alpha is shifted to end at 0 and stretched to begin
    as before (Lin et al. 2024, arXiv:2305.08891, algorithm 1)."""
    alpha = np.sqrt(np.cumprod(1.0 - betas))
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    alpha2 = np.square(alpha)
    return 1.0 - alpha2 / np.concatenate([[1.0], alpha2[:-1]])


def _ve(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """NCSN++ under VE; the network has the logarithm of sigma and the division by it."""
    low, high = found.get("sigma_min", 0.01), found.get("sigma_max", 1348.0)
    if not all(type(value) in (int, float) for value in (low, high)) or not 0 < low < high < 1e9:
        raise UserError(
            f"{path}: sigma_min = {low!r}, sigma_max = {high!r}: allowed are rising ones"
        )
    return {
        "sde.name": "ve",
        "sde.sigma_min": float(low),
        "sde.sigma_max": float(high),
        "model.parameterization": "score",
        "model.condition": "log_sigma",
        "model.sigma_data": 1.0,
        "model.num_levels": 0,
    }


def _refuse(path: Path, key: str, value: object, allowed: str) -> NoReturn:
    raise UserError(f"{path}: {key} = {value!r:.60}: allowed are {allowed}")
