"""The oracle's own truth: against SciPy, against automatic differentiation, against its own
draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests.cases import PROCESSES, overlapping_mixture


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("time", [0.01, 0.6])
def test_log_prob_is_that_of_the_noised_components(name, time):
    sde, mixture = PROCESSES[name], overlapping_mixture(3)
    t = jnp.full(20, time)
    x = 2.0 * jax.random.normal(jax.random.key(0), (20, 3))
    alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    joint = np.zeros((20, 2))
    for k in range(2):
        axes = np.asarray(mixture.axes[k], np.float64)
        covariance = alpha**2 * (
            axes * np.asarray(mixture.variances[k])
        ) @ axes.T + sigma**2 * np.eye(3)
        mean = alpha * np.asarray(mixture.means[k], np.float64)
        weight = np.exp(mixture.log_weights[k])
        joint[:, k] = weight * multivariate_normal(mean, covariance).pdf(np.asarray(x))
    density = joint.sum(1)
    # float32: quadratic forms up to some hundreds, each with a relative error of 1e-6.
    np.testing.assert_allclose(mixture.log_prob(sde, x, t), np.log(density), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(mixture.posterior(sde, x, t), joint / density[:, None], atol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_score_is_the_gradient_of_log_prob(name):
    sde, mixture = PROCESSES[name], overlapping_mixture(6)
    x = jax.random.normal(jax.random.key(1), (10, 2, 3))
    t = jnp.linspace(0.01, 0.9, 10)
    gradient = jax.grad(lambda x: jnp.sum(mixture.log_prob(sde, x, t)))(x)
    np.testing.assert_allclose(mixture.score(sde)(x, t), gradient, rtol=1e-4, atol=1e-4)


def test_draws_have_the_moments():
    sde, mixture, num = PROCESSES["vp"], overlapping_mixture(4), 40_000
    key_x, key_z = jax.random.split(jax.random.key(2))
    x0, t = mixture.sample(key_x, num), jnp.full(num, 0.3)
    mean, std = sde.marginal(x0, t)
    x = np.asarray(mean + std[:, None] * jax.random.normal(key_z, x0.shape))
    mean, covariance = (np.asarray(a) for a in mixture.moments(sde, 0.3))
    # Four standard errors of a mean and, for these nearly Gaussian draws, of an entry of the
    # covariance.
    scale = covariance.diagonal()
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(scale / num))
    bound = 4 * np.sqrt((np.outer(scale, scale) + covariance**2) / num)
    assert np.all(np.abs(np.cov(x.T) - covariance) < bound)


def test_the_posterior_given_a_measurement_is_bayes():
    """log p(x) + log p(y | x) is its log density, up to the same number everywhere."""
    mixture, sde, t = overlapping_mixture(4), PROCESSES["vp"], jnp.full(12, 1e-7)
    matrix = jax.random.normal(jax.random.key(0), (2, 4))
    y, sigma_y = jnp.asarray([0.4, -0.3]), 0.3
    posterior = mixture.given(matrix, y, sigma_y)
    x = posterior.sample(jax.random.key(1), 12)
    log_y = -0.5 * jnp.sum(jnp.square(y[None] - x @ matrix.T), 1) / sigma_y**2
    constant = mixture.log_prob(sde, x, t) + log_y - posterior.log_prob(sde, x, t)
    np.testing.assert_allclose(constant, np.full(12, constant[0]), atol=2e-4)  # float32
    assert 0.05 < float(jnp.exp(posterior.log_weights[0])) < 0.95  # both count
