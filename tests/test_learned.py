"""The learned schedule: as a process, its two gradients, and what training it does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_sde
from score_sde.bounds import likelihood_bound
from score_sde.learned import LearnedVP, constants
from score_sde.losses import low_discrepancy
from score_sde.score import Model
from score_sde.sde import SDE, expand
from score_sde.variational import ENDS, variational_loss
from tests.commands import DIGITS, FEW, ROOT, TINY, as_users_have_it, succeed

DIMS = 32
MEAN, STDS = np.linspace(-1, 1, DIMS), np.geomspace(0.05, 1.0, DIMS)
BENT = LearnedVP(-6.0, 3.0, 0.0, (0.5, -1.0, 1.0), rates=(6.0, 12.0, 20.0), places=(1.0, 4.0, 6.0))
INSIDE = [field.name for field in dataclasses.fields(LearnedVP) if field.name not in ENDS]


def noise_of_a_gaussian(params, x, log_snr, condition):
    """The exact epsilon of N(MEAN, STDS^2), times a parameter that is 1."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * log_snr))[:, None] for sign in (1, -1))
    mean, std = (jnp.asarray(row, x.dtype)[None] for row in (MEAN, STDS))
    return params * sigma * (x - alpha * mean) / (jnp.square(alpha * std) + jnp.square(sigma))


def model_of(process, factor=1.0):
    return Model(jnp.float32(factor), process, noise_of_a_gaussian, "epsilon", "log_snr")


def draws(key, number):
    mean, std = (jnp.asarray(row, jnp.float32)[None] for row in (MEAN, STDS))
    return mean + std * jax.random.normal(key, (number, DIMS))


def arrays(process):
    return {name: jnp.asarray(value, jnp.float32) for name, value in constants(process).items()}


def test_what_is_written_out_is_what_follows_from_the_pair():
    t = jnp.linspace(0.01, 0.99, 13)
    gamma = BENT.gamma(jnp.asarray([0.0, *t, 1.0]))
    np.testing.assert_allclose(gamma[jnp.asarray([0, -1])], [-6.0, 3.0], atol=1e-5)
    assert (np.diff(gamma) > 0).all()
    np.testing.assert_allclose(BENT.log_snr(t), SDE.log_snr(BENT, t), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(BENT.drift_rate(t), SDE.drift_rate(BENT, t), rtol=1e-4)
    np.testing.assert_allclose(BENT.diffusion(t), SDE.diffusion(BENT, t), rtol=1e-3)
    np.testing.assert_allclose(BENT.inverse_log_snr(BENT.log_snr(t)), t, atol=1e-5)
    for ours, derived in zip(
        BENT.transition(t[:-1], t[1:]), SDE.transition(BENT, t[:-1], t[1:]), strict=True
    ):
        np.testing.assert_allclose(ours, derived, rtol=1e-3)
    with pytest.raises(ValueError, match=r"gamma_max = -20\.0: allowed are numbers above -13\.3"):
        LearnedVP(gamma_max=-20.0)


def test_the_ends_get_the_bounds_gradient_and_the_rest_that_of_the_square():
    """Against derivatives of the estimate written out once more. float32: 1e-4 of the largest."""
    key, x0 = jax.random.key(0), draws(jax.random.key(1), 64)
    key_t, key_z = jax.random.split(key)
    t, z = low_discrepancy(key_t, len(x0)), jax.random.normal(key_z, x0.shape)

    def written_out(values, factor):
        process = LearnedVP(**values)
        alpha, sigma = (expand(of(t), x0) for of in (process.alpha, process.sigma))
        x = alpha * x0 + sigma * z
        error = z - noise_of_a_gaussian(factor, x, process.log_snr(t), {})
        diffusion = 0.5 * process.slope(t) * jnp.mean(jnp.square(error), axis=1)
        one = jnp.ones(1)
        alpha, sigma = process.alpha(one), process.sigma(one)
        size2 = jnp.mean(jnp.square(x0), axis=1)
        prior = 0.5 * (alpha**2 * size2 + sigma**2 - 1 - jnp.log(sigma**2))
        noise = process.sigma(0 * one) / process.alpha(0 * one)
        rest = 0.5 * (jnp.log(2 * jnp.pi * noise**2) + 1)
        return diffusion, diffusion + prior + rest

    def loss(values, factor):
        return jnp.mean(variational_loss(key, model_of(LearnedVP(**values), factor), x0))

    # A factor other than 1: with the exact score some of the derivatives are 0.
    at = arrays(BENT), jnp.float32(0.9)
    value, (ours, of_factor) = jax.jit(jax.value_and_grad(loss, (0, 1)))(*at)
    by_bound, by_factor = jax.grad(lambda *at: jnp.mean(written_out(*at)[1]), (0, 1))(*at)
    by_square = jax.grad(lambda *at: jnp.mean(jnp.square(written_out(*at)[0])))(*at)
    np.testing.assert_allclose(value, jnp.mean(written_out(*at)[1]), rtol=1e-5)
    np.testing.assert_allclose(of_factor, by_factor, rtol=1e-4)
    for name in ENDS:
        np.testing.assert_allclose(ours[name], by_bound[name], rtol=1e-3, atol=1e-5)
    for name in INSIDE:
        large = float(jnp.max(jnp.abs(by_square[name])))
        assert large > 1e-4
        np.testing.assert_allclose(ours[name], by_square[name], rtol=0, atol=1e-3 * large)


def test_its_mean_is_the_bound():
    """In nats per dimension, at times of its own: within 4 standard errors. The decoder without a
    network costs no more than rounding where the noise is far below the data's."""
    process, x0 = LearnedVP(-13.0, 5.0), draws(jax.random.key(2), 4096)
    loss = variational_loss(jax.random.key(3), model_of(process), x0)
    bound = -likelihood_bound(
        jax.random.key(4), process, model_of(process), x0, num_times=20
    ).log_prob / DIMS  # fmt: skip
    above = np.asarray(loss - bound)
    error = above.std(ddof=1) / np.sqrt(len(above))
    assert error < 0.1 and abs(above.mean()) < 4 * error


def test_training_a_schedule_lowers_the_bound_and_its_variance():
    """The exact score of a Gaussian, Adam on the schedule alone. The ends move apart, as more noise
    levels are a better model; between them the estimate scatters less. Measured once: standard
    deviations of 1.2 and, by the schedule as it begins between the same ends, 3.3."""
    optimizer = optax.adam(0.05)

    def diffusion(values, key):
        process, x0 = LearnedVP(**values), draws(key, 1024)
        loss = variational_loss(key, model_of(process), x0)
        return loss, jnp.mean(loss)

    def step(carry, key):
        values, state = carry
        gradient = jax.grad(lambda values: diffusion(values, key)[1])(values)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(values, updates), state), None

    begin = arrays(LearnedVP(-6.0, 3.0))
    keys = jax.random.split(jax.random.key(5), 200)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])
    with as_users_have_it():  # optax promotes dtypes
        trained = train((begin, optimizer.init(begin)))
    assert trained["gamma_min"] < -7 and trained["gamma_max"] > 4
    straight = arrays(LearnedVP()) | {name: trained[name] for name in ENDS}
    evaluate, key = jax.jit(diffusion), jax.random.key(6)
    (ours, mean), (line, other) = evaluate(trained, key), evaluate(straight, key)
    assert float(jnp.std(ours)) < 0.6 * float(jnp.std(line))
    # The same bound: the standard errors, of 1024, of two means.
    assert abs(mean - other) < 4 * float(jnp.std(line)) * np.sqrt(2 / 1024)
    assert mean < evaluate(begin, key)[1]


def test_a_run_learns_its_schedule_and_is_a_run_like_any_other(tmp_path):
    learned = ("--config.sde.name=vp_learned", "--config.training.loss=likelihood")
    succeed("--mode=train", DIGITS, "--workdir", tmp_path, *TINY, *learned, cwd=ROOT)
    run = score_sde.load(tmp_path)
    first = arrays(LearnedVP())
    for name, value in arrays(run.sde).items():
        assert np.isfinite(value).all() and np.abs(np.asarray(value - first[name])).max() > 0, name
    assert run.sample(jax.random.key(0), 3).images.shape == (3, 8, 8, 1)
    few = ("--config.likelihood.num_images=3", "--config.likelihood.num_times=3")
    arguments = ("--workdir", tmp_path, "--config.likelihood.method=bound", *few)
    assert "variational bound" in succeed("--mode=likelihood", *arguments, cwd=ROOT)
    told = succeed("--mode=sample", "--workdir", tmp_path, *FEW, cwd=ROOT)
    assert "samples.png" in told
