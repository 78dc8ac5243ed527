"""The loss: its formula, its times, its weightings (the recorded losses are in tests/networks)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.losses import denoising_score_matching, low_discrepancy, sample_times, weighted_error
from tests.cases import PROCESSES, overlapping_mixture


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
