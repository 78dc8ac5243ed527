"""What diffusers' scheduler_config.json says of the process (tests/parity has the classes)."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.convert import scheduler
from score_sde.discrete import DiscreteVPSDE, discretization
from score_sde.errors import UserError


def settings(folder: Path, **values: Any) -> dict[str, Any]:
    path = folder / scheduler.FILE
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", **values}))
    return scheduler.settings(path)


def test_linear_betas_are_ddpms_chain(tmp_path: Path):
    assert settings(tmp_path) == {
        "sde.name": "vp",
        "sde.beta_min": 0.1,
        "sde.beta_max": 20.0,
        "model.num_levels": 1000,
        "model.parameterization": "epsilon",
        "model.condition": "time",
        "model.sigma_data": 1.0,
        "training.loss": "paper",
    }
    other = settings(tmp_path, beta_start=0.002, beta_end=0.1, num_train_timesteps=50)
    found = {key: other[key] for key in ("sde.beta_min", "sde.beta_max", "model.num_levels")}
    assert found == {"sde.beta_min": 0.1, "sde.beta_max": 5.0, "model.num_levels": 50}


@pytest.mark.parametrize(("word", "ours"), scheduler.PREDICTIONS.items())
def test_what_the_network_predicts(tmp_path: Path, word: str, ours: str):
    assert settings(tmp_path, prediction_type=word)["model.parameterization"] == ours


def test_the_levels_of_other_betas(tmp_path: Path):
    """The chain's alpha^2 is the product of 1 - beta, or what the betas were made from."""
    k = np.arange(1000)
    roots = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
    angles = ((k + 1) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = {
        "scaled_linear": np.cumprod(1 - roots**2),
        # All but the last level, whose beta is cut to 0.999.
        "squaredcos_cap_v2": np.cos(angles) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2,
    }
    for schedule, alpha2 in expected.items():
        found = settings(tmp_path, beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
        assert (found["sde.name"], found["model.num_levels"]) == ("vp_discrete", 1000)
        chain = discretization(DiscreteVPSDE(found["sde.betas"])).chain(1000)
        # A sum of a thousand logarithms in float32.
        np.testing.assert_allclose(chain.alpha[:-1] ** 2, alpha2[:-1], rtol=1e-4)
    trained = [0.1, 0.2, 0.4]
    found = settings(tmp_path, trained_betas=trained, beta_schedule="of its own")
    assert found["sde.betas"] == (0.1, 0.2, 0.4) and found["model.num_levels"] == 3


def test_betas_that_end_in_pure_noise(tmp_path: Path):
    """alpha is shifted to end at 0, and stretched to begin as before."""
    rescaled = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    found = settings(tmp_path, **rescaled)
    assert found["sde.name"] == "vp_discrete" and found["sde.betas"][-1] == 1.0
    alpha = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    sde = DiscreteVPSDE(found["sde.betas"])
    ours = discretization(sde).chain(1000).alpha
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)
    assert not sde.keeps_data() and np.isfinite(sde.log_snr(jnp.ones(1))).all()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
    ({"_class_name": None}, "_class_name"),
    ({"prediction_type": "flow_prediction"}, "prediction_type"),
    ({"prediction_type": ["epsilon"]}, "prediction_type"),
    ({"beta_schedule": "laplace"}, "beta_schedule"),
    ({"timestep_spacing": "karras"}, "timestep_spacing"),
    ({"timestep_spacing": None}, "timestep_spacing"),
    ({"timestep_type": "continuous"}, "timestep_type"),
    ({"steps_offset": -1}, "steps_offset"),
    ({"steps_offset": 1.0}, "steps_offset"),
    ({"clip_sample": 1}, "clip_sample"),
    ({"clip_sample_range": 0}, "clip_sample_range"),
    ({"clip_sample_range": float("inf")}, "clip_sample_range"),
    ({"thresholding": None}, "thresholding"),
    ({"set_alpha_to_one": "yes"}, "set_alpha_to_one"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas"),
    ({"rescale_betas_zero_snr": True}, "prediction_type"),
    ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr"),
    ({"num_train_timesteps": 1}, "num_train_timesteps"),
    ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
    ({"num_train_timesteps": 1000.0}, "num_train_timesteps"),
    ({"beta_start": 0}, "beta_start"),
    ({"beta_end": 1.0}, "beta_end"),
    ({"beta_end": "0.02"}, "beta_end"),
    ({"num_train_timesteps": 10_001, "beta_schedule": "squaredcos_cap_v2"}, "num_train_timesteps"),
    ({"trained_betas": [1e-4] * 10_001}, "trained_betas"),
    ({"trained_betas": "linear"}, "trained_betas"),
    ({"trained_betas": [0.1, None]}, "trained_betas"),
    ({"trained_betas": [0.1, 1.5]}, "betas"),
    ({"trained_betas": [0.1, 10**400]}, "betas"),  # larger than any float
    ({"_class_name": scheduler.VE, "sigma_max": 0.001}, "sigma_max"),
]


@pytest.mark.parametrize(("values", "key"), MISTAKES, ids=lambda case: str(case)[:60])
def test_what_ours_cannot_express_is_refused_by_key_and_value(
    tmp_path: Path, values: dict[str, Any], key: str
):
    with pytest.raises(UserError) as caught:
        settings(tmp_path, **values)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / scheduler.FILE}: ") and f"{key}" in told
    assert "allowed are" in told and "\n" not in told


DDIM = {"sampling.method": "ddim", "sampling.grid": "leading"}
SAMPLING: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # What the file says, our settings of it beside `DDIM`, and what is not taken.
    ({}, {"sampling.clip": 1.0}, {}),
    ({"clip_sample_range": 2}, {"sampling.clip": 2}, {}),
    ({"clip_sample": False, "sample_max_value": 1.0}, {}, {}),
    ({"clip_sample": False, "steps_offset": 1}, {"sampling.steps_offset": 1}, {}),
    # The other grids have no offset, in diffusers neither.
    (
        {"clip_sample": False, "steps_offset": 1, "timestep_spacing": "trailing"},
        {"sampling.grid": "trailing"},
        {},
    ),
    ({"clip_sample": False, "set_alpha_to_one": False}, {"sampling.denoise": False}, {}),
    (
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        {"sampling.steps_offset": 1},
        {"set_alpha_to_one": False},
    ),
    (
        {"thresholding": True, "sample_max_value": 2.0},
        {},
        {"thresholding": True, "sample_max_value": 2.0},
    ),
    (
        {"variance_type": "fixed_small", "of_a_later_version": 0},
        {"sampling.clip": 1.0},
        {"variance_type": "fixed_small", "of_a_later_version": 0},
    ),
]


@pytest.mark.parametrize(("values", "ours", "others"), SAMPLING, ids=lambda case: str(case)[:60])
def test_every_key_is_expressed_or_reported(
    tmp_path: Path, values: dict[str, Any], ours: dict[str, Any], others: dict[str, Any]
):
    settings(tmp_path, _diffusers_version="0.42.1", **values)
    assert scheduler.sampling(tmp_path / scheduler.FILE) == (DDIM | ours, others)


def test_of_ves_sampler_nothing_is_taken(tmp_path: Path):
    settings(tmp_path, _class_name=scheduler.VE, sigma_max=380.0, snr=0.15)
    assert scheduler.sampling(tmp_path / scheduler.FILE) == ({}, {"snr": 0.15})


def test_ncsnpp_is_under_ve(tmp_path: Path):
    found = settings(tmp_path, _class_name=scheduler.VE, sigma_max=380.0)
    assert (found["sde.name"], found["sde.sigma_max"]) == ("ve", 380.0)
    assert (found["model.parameterization"], found["model.condition"]) == ("score", "log_sigma")
