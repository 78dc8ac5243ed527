"""The loss: its formula, its times, its weightings (the recorded losses are in tests/networks)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.discrete import discretization
from score_sde.losses import (
    correct_by_time,
    cross_entropy,
    denoising_score_matching,
    discrete_score_matching,
    error_by_time,
    level_error,
    low_discrepancy,
    sample_times,
    weighted_error,
)
from score_sde.score import Model
from score_sde.sde import expand
from tests.cases import PROCESSES, PUBLISHED, overlapping_mixture


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("weighting", ["paper", "likelihood", "mixture"])
def test_times_lie_between_t_min_and_T(name, weighting):
    sde = PROCESSES[name]
    t, weight = sample_times(jax.random.key(0), sde, 1000, weighting, 1e-5)
    assert float(t.min()) >= 1e-5 and float(t.max()) <= sde.T
    assert np.all(np.asarray(weight) > 0)


def test_low_discrepancy_times_fill_every_cell_once():
    u = np.asarray(low_discrepancy(jax.random.key(3), 64))
    assert sorted(np.floor(u * 64 - u[0] * 64 % 1 + 1e-3).astype(int) % 64) == list(range(64))


@pytest.mark.parametrize("name", PROCESSES)
def test_importance_sampling_leaves_the_likelihood_weighted_loss(name):
    """E over uniform t of g^2 / sigma^2 |e|^2 = E over uniform log-SNR of its weight |e|^2."""
    sde = PROCESSES[name]
    t_min, num = 0.01, 20_000
    t, weight = sample_times(jax.random.key(0), sde, num, "likelihood", t_min)
    uniform = jnp.asarray(t_min + (np.arange(num) + 0.5) / num * (sde.T - t_min), jnp.float32)

    def error(t):  # any smooth function of the time
        return 1.0 + jnp.sin(3.0 * t)

    g2_over_sigma2 = jnp.square(sde.diffusion(uniform) / sde.sigma(uniform))
    # Both are midpoint-like sums of smooth integrands with 20,000 points; the integrand's range is
    # below 1e3.
    np.testing.assert_allclose(
        jnp.mean(weight * error(t)), jnp.mean(g2_over_sigma2 * error(uniform)), rtol=2e-3
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_score_has_the_smallest_loss_and_a_known_one(name):
    """For data N(0, v I) the loss at t is that of the best estimate of z: alpha^2 v / (alpha^2 v +
    sigma^2)."""
    sde, v, dims = PROCESSES[name], 0.3, 8
    t, num = 0.4, 20_000
    key_x, key_z = jax.random.split(jax.random.key(0))
    x0 = jnp.sqrt(v) * jax.random.normal(key_x, (num, dims))
    z = jax.random.normal(key_z, (num, dims))
    times = jnp.full(num, t)
    alpha, sigma = sde.alpha(times)[0], sde.sigma(times)[0]
    variance = alpha**2 * v + sigma**2

    def loss(scale):
        return jnp.mean(
            weighted_error(sde, lambda x, t: -scale * x / variance, x0, times, z, jnp.ones(num))
        )

    expected = alpha**2 * v / variance
    # Mean of num * dims squares of variance 2 expected^2: four standard errors are 1.4e-2 relative.
    np.testing.assert_allclose(loss(1.0), expected, rtol=1.5e-2)
    assert loss(1.0) < loss(0.9) and loss(1.0) < loss(1.1)


def test_the_error_by_time_is_known_for_a_gaussian_and_no_matter_of_batches():
    """As above, at several times at once."""
    sde, v, num = PROCESSES["vp"], 0.3, 4000
    x0 = jnp.sqrt(v) * jax.random.normal(jax.random.key(1), (num, 8))
    t, key = jnp.array([0.1, 0.4, 0.9]), jax.random.key(2)
    alpha2, sigma2 = jnp.square(sde.alpha(t)), jnp.square(sde.sigma(t))

    def score(x, t):
        return -x / expand(jnp.square(sde.alpha(t)) * v + jnp.square(sde.sigma(t)), x)

    found = error_by_time(key, sde, score, x0, t)
    assert found.shape == (num, 3)
    # The mean of 32,000 squares: four standard errors are 3.2 % relative.
    expected = alpha2 * v / (alpha2 * v + sigma2)
    np.testing.assert_allclose(found.mean(0), expected, rtol=0.035)
    part = error_by_time(key, sde, score, x0[1000:1010], t, 1000)
    np.testing.assert_allclose(part, found[1000:1010], rtol=1e-5)  # sums of 8 in another order


def test_a_classifier_that_knows_nothing_loses_log_K():
    x0, labels = jnp.zeros((5, 2)), jnp.arange(5) % 3
    loss = cross_entropy(
        jax.random.key(0), PROCESSES["ve"], lambda x, t: jnp.full((len(x), 3), 0.7), x0, labels
    )
    np.testing.assert_allclose(loss, np.log(3.0), rtol=1e-6)


def test_the_accuracy_by_time_is_known_for_two_points():
    """Of data at +1 and -1 the side of x_t is right with probability Phi(alpha / sigma)."""
    sde, num = PROCESSES["vp"], 4000
    labels = jnp.arange(num) % 2
    x0 = jnp.where(labels == 1, 1.0, -1.0)[:, None]
    t = jnp.array([0.01, 0.3, 0.9])
    found = correct_by_time(
        jax.random.key(0), sde, lambda x, t: jnp.concatenate([-x, x], axis=1), x0, labels, t
    )
    assert found.shape == (num, 3)
    expected = jax.scipy.stats.norm.cdf(sde.alpha(t) / sde.sigma(t))
    # Four standard errors of a share of 4000.
    error = 4.0 * jnp.sqrt(expected * (1.0 - expected) / num)
    np.testing.assert_array_less(jnp.abs(found.mean(0) - expected), error + 1e-6)


def test_half_the_sum_is_the_mean_times_half_the_dimensions():
    sde, mixture = PROCESSES["ve"], overlapping_mixture(6)
    x0 = mixture.sample(jax.random.key(0), 16).reshape(16, 2, 3, 1)
    both = [
        denoising_score_matching(jax.random.key(1), sde, mixture.score(sde), x0, reduce_mean=mean)
        for mean in (True, False)
    ]
    assert both[0].shape == (16,)
    np.testing.assert_allclose(both[1], 3.0 * both[0], rtol=1e-5)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="'sigma': allowed are paper, likelihood, mixture"):
        sample_times(jax.random.key(0), PROCESSES["vp"], 4, "sigma", 1e-5)


# --- Discrete levels ------------------------------------------------------------------------------


def as_published(process, output, z, sigma):
    """The losses as their papers write them, for an example each."""
    if process == "vp":  # DDPM: the network's output is the noise itself
        return np.square(output - z)
    noise = sigma * z  # SMLD: the network's output divided by sigma is the score
    return sigma**2 * np.square(output / sigma + noise / sigma**2)


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_discrete_losses_are_those_of_ddpm_and_smld(process):
    sde, level = PUBLISHED[process], jnp.asarray([0, 17, 99])
    chain = discretization(sde).chain(100)
    x0, z = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    told = []

    def apply(params, x, noise, condition):
        told.append((x, noise))
        return 0.3 * x + 0.1

    model = Model(None, sde, apply, {"vp": "epsilon", "ve": "score"}[process], "time", 100)

    def score(x, level):
        return model.score_at(x, model.at_level(level))

    losses = [level_error(chain, score, x0, level, z, reduce_mean=mean) for mean in (True, False)]
    x, condition = told[0]
    alpha, sigma = (np.asarray(expand(table[level], x0)) for table in chain)
    np.testing.assert_allclose(x, alpha * x0 + sigma * z, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(condition, [0.0, 17.0, 99.0])
    squared = as_published(process, 0.3 * np.asarray(x) + 0.1, np.asarray(z), sigma)
    # Dividing by sigma and multiplying again: a few roundings of 6e-8.
    np.testing.assert_allclose(losses[0], squared.reshape(3, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses[1], squared.reshape(3, -1).sum(1) / 2, rtol=1e-5)


def test_levels_are_drawn_evenly_and_none_is_left_out():
    chain, drawn = discretization(PUBLISHED["ve"]).chain(10), []

    def score(x, level):
        drawn.append(np.asarray(level))
        return -x

    for seed in range(20):
        discrete_score_matching(jax.random.key(seed), chain, score, jnp.zeros((32, 2)))
    assert drawn[0].dtype == np.int32
    for levels in drawn:  # 32 evenly spread numbers: 3 or 4 in each tenth
        assert set(np.bincount(levels, minlength=10)) <= {3, 4}
    assert len(np.bincount(np.concatenate(drawn))) == 10
