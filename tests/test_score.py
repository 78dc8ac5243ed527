"""Parameterizations: whatever the network's target, the score is that of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde.functions import as_pytree
from score_sde.schedules import EDM, Flow
from score_sde.score import (
    NOISE_CONDITIONS,
    OF_PURE_NOISE,
    PARAMETERIZATIONS,
    Model,
    denoise,
)
from score_sde.sde import expand
from tests.cases import PROCESSES, PUBLISHED, converted, overlapping_mixture

# The target of each parameterization, from its paper and not from our table.
TARGETS = {
    "epsilon": lambda x0, z, alpha, sigma: z,
    "score": lambda x0, z, alpha, sigma: -z,  # divided by sigma it is the score
    "velocity": lambda x0, z, alpha, sigma: (alpha * z - sigma * x0) / jnp.hypot(alpha, sigma),
    "denoised": lambda x0, z, alpha, sigma: x0,
    "flow": lambda x0, z, alpha, sigma: z - x0,
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
    roundings = {
        "velocity": 1e-4,
        "flow": 1e-4,
        "denoised": 1e-6 / np.minimum(np.asarray(sigma), 1.0),
    }
    error = np.abs(np.asarray(score * sigma + z))
    np.testing.assert_array_less(error, roundings.get(name, 1e-6) + 1e-4 * np.abs(z))
    if name == "denoised":
        np.testing.assert_array_equal(model.denoised(x, t), x0)


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("source", PARAMETERIZATIONS)
def test_every_target_is_converted_to_every_other(source, target):
    for sde in (PUBLISHED["vp"], PUBLISHED["subvp"], PUBLISHED["ve"], Flow()):
        t = jnp.linspace(0.05, 0.95, 7)
        x0, z = jax.random.normal(jax.random.key(0), (2, 7, 3))
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * z
        given, wanted = (
            TARGETS[name](x0, z, expand(alpha, x0), expand(sigma, x0)) for name in (source, target)
        )
        found = converted(given, x, alpha, sigma, source, target)
        # x holds x0 to 6e-8 sigma / alpha, which is 5000 and less, and z to 6e-8 alpha / sigma.
        np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_velocities_are_defined_where_alpha_is_0():
    """There x is the noise, and the network's output tells the data."""
    x0, x = jnp.asarray([[0.3, -0.2]]), jnp.asarray([[1.0, 2.0]])
    none, one = jnp.zeros(1), jnp.ones(1)
    for source in ("velocity", "flow", "denoised"):
        output = TARGETS[source](x0, x, 0.0, 1.0)
        for target in PARAMETERIZATIONS:
            found = converted(output, x, none, one, source, target)
            np.testing.assert_allclose(found, TARGETS[target](x0, x, 0.0, 1.0), rtol=1e-6)


def test_sigma_data_makes_it_the_preconditioning_of_karras_and_others():
    """Karras et al. 2022, table 1, for sigma_data = 0.5, with F = -output."""
    sigma, s = np.geomspace(0.002, 80.0, 9), 0.5
    skip, out = s**2 / (sigma**2 + s**2), sigma * s / np.sqrt(sigma**2 + s**2)
    scale = 1.0 / np.sqrt(sigma**2 + s**2)
    x = np.random.default_rng(0).normal(size=(9, 3)) / scale[:, None]

    def network(x):
        return np.sin(x)

    def apply(params, x, noise, condition):
        return -jnp.sin(x)

    model = Model(None, EDM(), apply, "velocity", "log_sigma", sigma_data=s)
    found = model.denoised(jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32))
    wanted = skip[:, None] * x + out[:, None] * network(scale[:, None] * x)
    # Some tens of float32 roundings, 6e-8 each. The score has them over sigma.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    score = model(jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32))
    np.testing.assert_allclose(
        score, (wanted - x) / sigma[:, None] ** 2, rtol=1e-5, atol=1e-5 / sigma.min()
    )


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("own", PARAMETERIZATIONS)
def test_the_error_of_a_target(own, target):
    """Of x0 / sigma_data and z, by the estimates of both: the targets are linear in them."""
    sde, size = PUBLISHED["vp"], 0.5
    t = jnp.linspace(0.1, 0.9, 5)
    x0, z = jax.random.normal(jax.random.key(0), (2, 5, 3))
    model = Model(None, sde, lambda _, x, *__: 0.3 * x + 0.1, own, "log_snr", sigma_data=size)
    alpha, sigma = expand(sde.alpha(t), x0), expand(sde.sigma(t), x0)
    x = alpha * x0 + sigma * z
    epsilon, denoised = -sigma * model(x, t), model.denoised(x, t)
    predicted, wanted = (
        TARGETS[target](data / size, noise, size * alpha, sigma)
        for data, noise in ((denoised, epsilon), (x0, z))
    )
    found = model.error(x0, t, z, target)
    # Numbers of up to 10 and their differences, in float32.
    np.testing.assert_allclose(found, predicted - wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_second_half_of_the_output_is_that_of_variances(parameterization):
    """The scores are those of the first half alone; an output o says the share (o + 1) / 2."""
    sde, t = PUBLISHED["vp"], jnp.linspace(0.1, 0.9, 5)
    x, z = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))

    def apply(params, x, noise, condition):
        return jnp.sin(x)

    def twice(params, x, noise, condition):
        return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)

    plain = Model(None, sde, apply, parameterization, "time", num_levels=100)
    learned = Model(None, sde, twice, parameterization, "time", 100, learned_variance=True)
    np.testing.assert_array_equal(learned(x, t), plain(x, t))
    np.testing.assert_array_equal(learned.denoised(x, t), plain.denoised(x, t))
    np.testing.assert_array_equal(*(m.error(x, t, z, "flow") for m in (plain, learned)))
    score, share = learned.score_and_share(x, t)
    np.testing.assert_array_equal(score, plain(x, t))
    np.testing.assert_array_equal(share, 0.5 * (learned.output(x, learned.noise(t))[..., 3:] + 1))
    with pytest.raises(ValueError, match="learned_variance = False"):
        plain.score_and_share(x, t)


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
    # The rounding of a log-SNR of up to 20, some 1e-6 each, is relative in its exponential.
    np.testing.assert_allclose(jnp.exp(NOISE_CONDITIONS["log_snr"](sde, t)), snr, rtol=5e-5)


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
    model = mixture.score(sde)
    assert as_pytree(model) is model
    bound = Partial(lambda params, x, t: params * x, jnp.ones(3))
    assert [leaf is bound.args[0] for leaf in jax.tree.leaves(as_pytree(bound))] == [True]


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


def test_which_parameterizations_have_denoised_data_of_pure_noise():
    none, one = jnp.zeros(1), jnp.ones(1)
    finite = [
        name for name, of in PARAMETERIZATIONS.items() if np.isfinite(of(none, one).denoised).all()
    ]
    assert finite == list(OF_PURE_NOISE)
