"""The second-order loss: mean and gradient in closed form, where it is smallest, the command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import second_order
from score_sde.losses import Pair, sample_times
from tests.cases import EVERY, PROCESSES, overlapping_mixture, process_of
from tests.commands import DIGITS, KINDS, succeed

DIMS, NUM = 3, 20_000
KEYS = jax.random.split(jax.random.key(4), 3)


def near(values, expected):
    """Whether the mean of the draws is this number: four of its standard errors, and rounding."""
    values = np.asarray(values, np.float64)
    error = 4.0 * values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) < error + 1e-5, (values.mean(), expected, error)


@pytest.mark.parametrize("theta", [0.0, 0.5])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_mean_and_gradient_are_those_of_a_closed_form(name, theta):
    """Data N(m, C) and the score -(M + theta A)(x - alpha m) / sigma^2, exact for theta = 0. There
    e is normal of covariance S, and sigma^2 times the divergence is -tr(M + theta A).

    A's elements off the diagonal are large. They are the variance of a probe's estimate, which a
    loss with one probe would train away.
    """
    sde, rng = PROCESSES[name], np.random.default_rng(0)
    mean, factor = rng.normal(size=DIMS), 0.4 * rng.normal(size=(DIMS, DIMS))
    C, eye, t = factor @ factor.T, np.eye(DIMS), jnp.full(NUM, 0.3)
    A = 0.3 * rng.normal(size=(DIMS, DIMS))
    alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    exact = sigma**2 * np.linalg.inv(alpha**2 * C + sigma**2 * eye)
    M, nu2 = exact + theta * A, (sigma / alpha) ** 2
    S = (eye - M) @ (eye - M).T + M @ C @ M.T / nu2
    slope = 2.0 * np.trace(A @ C @ M.T) / nu2 - 2.0 * np.trace(A @ (eye - M).T)  # of tr S
    residual = np.trace(S) - DIMS + np.trace(M)
    if theta == 0.0:
        assert abs(residual) < 1e-12 and abs(slope) < 1e-12

    x0 = jnp.float32(mean + np.asarray(jax.random.normal(KEYS[0], (NUM, DIMS))) @ factor.T)
    z = jax.random.normal(KEYS[1], (NUM, DIMS))
    probes = jax.random.rademacher(KEYS[2], (2, NUM, DIMS), jnp.float32)

    def loss(theta):
        def score(x, t):
            by = jnp.float32(exact) + theta * jnp.float32(A)
            return -(x - jnp.float32(alpha * mean)[None]) @ by.T / sigma**2

        return second_order.error(sde, score, x0, t, z, probes)

    gradient = slope / DIMS + 2.0 * second_order.SHARE * residual * np.trace(A) / DIMS**2
    near(jax.jacfwd(loss)(jnp.float32(theta)), gradient)
    # |e|^2 is a quadratic form of normal numbers, with variance 2 tr(S^2).
    square = residual**2 + 2.0 * np.trace(S @ S)
    near(loss(theta), np.trace(S) / DIMS + second_order.SHARE * square / DIMS**2)


@jax.jit
def tilted_loss(share, sde, mixture, x0, t, z, probes):
    """By the exact score, with share / sigma^2 added to each derivative d s_i / d x_i."""

    def tilted(x, t):
        added = share / jnp.square(sde.sigma(t))
        return mixture.score(sde)(x, t) + added[:, None] * (x - jax.lax.stop_gradient(x))

    return second_order.error(sde, tilted, x0, t, z, probes)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY)
def test_at_the_exact_score_the_true_divergence_is_the_best(name):
    """With another divergence the mean rises by 0.1 share^2: without it is smallest. Of a mixture,
    at all times."""
    sde, mixture = process_of(name), overlapping_mixture(DIMS)
    t, _ = sample_times(KEYS[1], sde, NUM, Pair("importance", "epsilon"), 1e-3)
    z = jax.random.normal(KEYS[1], (NUM, DIMS))
    probes = jax.random.rademacher(KEYS[2], (2, NUM, DIMS), jnp.float32)
    arguments = sde, mixture, mixture.sample(KEYS[0], NUM), t, z, probes
    without = tilted_loss(0.0, *arguments)
    for share in (-0.5, 0.5):
        near(tilted_loss(share, *arguments) - without, second_order.SHARE * share**2)


def test_the_whole_loss_is_the_likelihoods_and_a_rest():
    """A score that is constant in x has no divergence, and the rest is 0.1 (|e|^2 - D)^2 / D."""
    sde, x0 = PROCESSES["vp"], jax.random.normal(KEYS[0], (64, 2, 3, 1))
    key, t_min = jax.random.key(1), 1e-3
    key_t, key_z, _ = jax.random.split(key, 3)
    z = np.asarray(jax.random.normal(key_z, x0.shape)).reshape(64, 6)
    _, weight = sample_times(key_t, sde, 64, Pair("importance", "likelihood"), t_min)

    def loss(**options):
        return second_order.loss(key, sde, lambda x, t: 0.0 * x, x0, t_min=t_min, **options)

    first = np.mean(z**2, axis=1)
    found = loss()
    np.testing.assert_allclose(found, weight * (first + 0.1 * (first - 1.0) ** 2), rtol=1e-4)
    np.testing.assert_allclose(loss(reduce_mean=False), 3.0 * found, rtol=1e-5)


@pytest.mark.parametrize("kind", ["digits", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_run_is_tuned(kind, tiny_run, tmp_path):
    tiny_run(kind, tmp_path)
    tune = ("--config.training.loss=second_order", "--config.training.from=runs/vp_digits")
    quiet = ("--config.training.sample_every=0", "--workdir=tuned")
    told = succeed("--mode=train", DIGITS, *KINDS[kind], *quiet, *tune, cwd=tmp_path)
    assert "weights: the averages of runs/vp_digits, step 4" in told
