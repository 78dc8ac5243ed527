"""Parameterizations: whatever the network's target, the score is that of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde.score import NOISE_CONDITIONS, PARAMETERIZATIONS, Model, as_pytree, denoise
from score_sde.sde import expand
from tests.cases import PROCESSES, PUBLISHED, overlapping_mixture

# The target of each parameterization, from its paper and not from our table.
TARGETS = {
    "epsilon": lambda x0, z, alpha, sigma: z,
    "score": lambda x0, z, alpha, sigma: -z,  # divided by sigma it is the score
    "velocity": lambda x0, z, alpha, sigma: (alpha * z - sigma * x0) / jnp.hypot(alpha, sigma),
    "denoised": lambda x0, z, alpha, sigma: x0,
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_network_that_hits_its_target_gives_the_conditional_score(process, name):
    sde = PROCESSES[process]
    t = jnp.linspace(1e-5, sde.T, 9)
    x0, z = jax.random.normal(jax.random.key(0), (2, 9, 4, 4, 1))
    mean, std = sde.marginal(x0, t)
    x = mean + expand(std, x0) * z
    alpha, sigma = expand(sde.alpha(t), x), expand(std, x)

    def apply(target, scaled, noise, condition):
        assert scaled.shape == x.shape and noise.shape == t.shape and condition == {}
        return target

    model = Model(TARGETS[name](x0, z, alpha, sigma), sde, apply, name, "log_snr")
    score = model(x, t)
    # -z / sigma, with some roundings of 6e-8 in x, which is up to max(1, 1 / sigma) times z.
    roundings = {"velocity": 1e-4, "denoised": 1e-6 / np.minimum(np.asarray(sigma), 1.0)}
    error = np.abs(np.asarray(score * sigma + z))
    np.testing.assert_array_less(error, roundings.get(name, 1e-6) + 1e-4 * np.abs(z))
    if name == "denoised":
        np.testing.assert_array_equal(model.denoised(x, t), x0)


def test_velocity_gives_the_network_inputs_of_unit_size():
    for sde in PROCESSES.values():
        t = jnp.linspace(0.01, sde.T, 50)
        c = PARAMETERIZATIONS["velocity"](sde.alpha(t), sde.sigma(t))
        size = jnp.square(c.c_in) * (jnp.square(sde.alpha(t)) + jnp.square(sde.sigma(t)))
        np.testing.assert_allclose(size, np.ones(50), rtol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_conditions(process):
    sde = PROCESSES[process]
    t = jnp.linspace(0.01, sde.T, 5)
    np.testing.assert_allclose(NOISE_CONDITIONS["time"](sde, t), 999.0 * t, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.exp(NOISE_CONDITIONS["log_sigma"](sde, t)), sde.sigma(t), rtol=1e-5
    )
    snr = jnp.square(sde.alpha(t) / sde.sigma(t))
    np.testing.assert_allclose(jnp.exp(NOISE_CONDITIONS["log_snr"](sde, t)), snr, rtol=1e-3)


@pytest.mark.parametrize("process", PROCESSES)
def test_tweedies_formula_is_the_posterior_mean(process):
    """For data N(0, v) the posterior mean is alpha v x / (alpha^2 v + sigma^2)."""
    sde, v = PROCESSES[process], 0.3
    t = jnp.linspace(0.05, 0.9 * sde.T, 8)
    x = jax.random.normal(jax.random.key(1), (8, 3))
    alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
    variance = jnp.square(alpha) * v + jnp.square(sigma)
    denoised = denoise(sde, lambda x, t: -x / variance, x, t)
    # x and sigma^2 score nearly cancel where alpha is small: 6e-8 / alpha^2 at worst.
    np.testing.assert_allclose(denoised, alpha * v * x / variance, rtol=1e-3, atol=1e-3)


def test_parameters_stay_leaves():
    sde = PROCESSES["vp"]
    mixture = overlapping_mixture(2)
    assert len(jax.tree.leaves(as_pytree(mixture.score(sde)))) == 6  # four arrays, two betas
    assert jax.tree.leaves(as_pytree(lambda x, t: -x)) == []
    bound = Partial(lambda params, x, t: params * x, jnp.ones(3))
    assert as_pytree(bound) is bound


@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("levels", ["smooth", "original"])
def test_what_a_discretely_trained_network_is_told(process, levels):
    """The level unrounded with the process's sigma, or the original's level with the chain's."""
    sde, t = PUBLISHED[process], jnp.asarray([0.001, 0.25049, 0.7777, 1.0])
    level = np.asarray([0.999, 250.23951, 776.9223, 999.0])
    level = level if process == "vp" else 999.0 - level
    if process == "vp":
        betas = np.linspace(0.1 / 1000, 20.0 / 1000, 1000)
        table, row = np.sqrt(1.0 - np.cumprod(1.0 - betas)), np.trunc(level)
    else:
        table, row = np.geomspace(50.0, 0.01, 1000), np.round(level)
        level = row if levels == "original" else level
    sigma = table[row.astype(int)] if levels == "original" else np.asarray(sde.sigma(t))
    told = []

    def apply(params, x, noise, condition):
        told.append(noise)
        return params * x

    score = Model(2.0, sde, apply, "epsilon", "time", 1000, levels)
    x = jnp.ones((4, 3))
    # t N in float32 is off by 6e-8 of itself; chains by 1e-5, see tests/test_sde.py.
    np.testing.assert_allclose(score(x, t), -2.0 / sigma[:, None] * x, rtol=2e-5)
    np.testing.assert_allclose(told[0], level, rtol=1e-6, atol=1e-4)


def test_levels_leave_a_continuously_trained_network_alone():
    sde, t, x = PUBLISHED["vp"], jnp.asarray([0.0011, 0.9]), jnp.ones((2, 3))
    scores = [
        Model(None, sde, lambda _, x, n, c: x * expand(n, x), "epsilon", "time", levels=levels)
        for levels in ("smooth", "original", "matched")
    ]
    np.testing.assert_array_equal(scores[0](x, t), scores[1](x, t))


def test_a_process_without_chain_has_no_discretely_trained_network():
    with pytest.raises(ValueError, match="SubVPSDE has no discrete chain"):
        Model(None, PUBLISHED["subvp"], lambda *_: None, "epsilon", "time", 1000).noise(jnp.ones(1))
