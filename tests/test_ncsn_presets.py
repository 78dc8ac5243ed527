"""The presets of NCSN and NCSNv2, which are not of the original's table, against their papers."""

import dataclasses

import numpy as np
import pytest

from score_sde import build
from score_sde.discrete import discretization
from score_sde.presets import load
from score_sde.samplers import AnnealedLangevin
from score_sde.validation import validate

# sigma_max, levels, steps at each, epsilon, denoising: NCSN's and NCSNv2's.
NCSN = {"ncsn": (1.0, 10, 100, 2e-5, False), "ncsnv2": (50.0, 232, 5, 6.2e-6, True)}


@pytest.mark.parametrize("variant", NCSN)
def test_annealed_langevin_presets(variant):
    sigma_max, levels, steps, epsilon, denoise = NCSN[variant]
    config = load(f"ve_cifar10:{variant}")
    validate(config)
    assert config.model.num_levels == levels
    assert config.training.loss == "paper" and config.training.reduce_mean is False
    assert config.training.num_steps == {"ncsn": 200_001, "ncsnv2": 300_001}[variant]
    process = build.sde(config)
    # x + a score + sqrt(2 a) z with a = epsilon sigma^2 / 0.01^2
    sampler = build.sampler(config)
    assert sampler.step_size == pytest.approx(epsilon / 0.01**2, rel=1e-12)
    assert dataclasses.replace(sampler, step_size=0.5) == AnnealedLangevin(
        num_steps=levels, steps_per_level=steps, step_size=0.5, consistent=False, denoise=denoise
    )
    # The sampler's levels are the training's, but that times end at 1e-5: a factor of
    # (sigma_max / 0.01)^1e-5 = 1.0001 in the last sigma.
    sigmas = np.geomspace(sigma_max, 0.01, levels)
    np.testing.assert_allclose(discretization(process).chain(levels).sigma, sigmas, rtol=1e-5)
    times = sampler.times(process)[:-1:steps]  # of each level the first
    np.testing.assert_allclose(process.sigma(times), sigmas, rtol=2e-4)


def test_ncsnv2s_step_is_what_its_technique_4_chooses():
    """Song, Ermon 2020: T steps of a = e sigma^2 take a variance of (ratio sigma)^2 to s^2, which
    e should make as near to sigma^2 as it can (proposition 3)."""
    config = load("ve_cifar10:ncsnv2")
    ratio = 5000.0 ** (1 / 231)
    e = np.linspace(0.001, 0.3, 300)
    kept, stationary = (1 - e) ** (2 * config.sampling.steps_per_level), 2 / (2 - e)
    variance = kept * (ratio**2 - stationary) + stationary
    assert abs(e[np.argmin(np.abs(variance - 1))] - config.sampling.step_size) < 0.001
