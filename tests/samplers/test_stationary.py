"""Correctors leave the distribution at their time where it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.samplers import PredictorCorrector
from tests.cases import VP_FIRST, overlapping_mixture, process_of, thorough

DIMS, NUM, STEPS = 16, 4096, 12


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(DIMS)


@partial(jax.jit, static_argnums=0)
def correct(sampler, sde, score, x, t, z):
    """The state after the corrector's steps, and the mean size of a step."""
    step = sde.reverse_step(0.999 * t, t)
    size = 2.0 * jnp.square((1.0 + step.f) * 0.16)
    if sampler.corrector == "ald":
        size = size * jnp.square(sde.sigma(t))
    else:
        size = size * DIMS / jnp.square(score(x, t)).sum(1)
    return sampler.correct(sde, score, x, t, step, z)[0], jnp.mean(size)


@pytest.mark.parametrize("name", VP_FIRST)
@pytest.mark.parametrize("corrector", ["langevin", "ald", *thorough("langevin, faithful")])
def test_langevin_is_stationary(name, corrector, mixture):
    """Started from p_t itself, at several t: mean and covariance stay, within their known bias.

    A Langevin step of size e is stationary at a variance v / (1 - e / (2 v)) where v is right, so
    narrow directions widen by more. With Langevin's snr rule for each sample e varies with the
    sample, which is stationary at p |score|^2: 1 + 2 / D times the variance. Nothing shrinks.
    """
    sampler = PredictorCorrector(
        num_steps=1000,
        corrector=corrector.split(",")[0],
        corrector_steps=STEPS,
        faithful="faithful" in corrector,
    )
    sde = process_of(name)  # the corrector gets its coefficients, by which the original's differ
    for index, time in enumerate((0.05, 0.3, 0.6, 0.95)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index), 3)
        t = jnp.full(NUM, time)
        x0 = mixture.sample(keys[0], NUM)
        mean, std = sde.marginal(x0, t)
        start = mean + std[:, None] * jax.random.normal(keys[1], (NUM, DIMS))
        noises = jax.random.normal(keys[2], (STEPS, NUM, DIMS))
        x, size = correct(sampler, sde, mixture.score(sde), start, t, noises)

        truth_mean, truth = (np.asarray(a, float) for a in mixture.moments(sde, time))
        alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
        narrowest = alpha**2 * float(mixture.variances.min()) + sigma**2
        varied = 1 + 2 / DIMS if corrector == "langevin" else 1.0
        widening = varied / (1 - float(size) / (2 * narrowest)) - 1
        # Whitened by the truth: 3 standard errors of 16 means and 256 covariances would be exceeded
        # somewhere by chance; 4.5 are by one in 100 000.
        whiten = np.linalg.inv(np.linalg.cholesky(truth))
        moved = whiten @ (np.asarray(x, float).mean(0) - truth_mean)
        assert np.abs(moved).max() < 4.5 * np.sqrt((1 + widening) / NUM), time
        excess = whiten @ np.cov(np.asarray(x, float).T) @ whiten.T - np.eye(DIMS)
        error = 4.5 * np.sqrt((1 + np.eye(DIMS)) / NUM) * (1 + widening)
        # The whole excess, in any direction, is between 0 and the widening.
        assert np.all(np.diag(excess) < np.diag(error) + widening), time
        assert np.all(np.diag(excess) > -np.diag(error)), time
        off = excess - np.diag(np.diag(excess))
        assert np.all(np.abs(off) < error + widening), time
