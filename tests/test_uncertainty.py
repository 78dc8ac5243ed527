"""The learned size of the loss: its optimum, its gradients, and runs that have it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_sde
from score_sde.discrete import discretization
from score_sde.losses import (
    LOSSES,
    Pair,
    denoising_score_matching,
    discrete_score_matching,
    sample_times,
)
from score_sde.schedules import EDM, Flow
from score_sde.score import Model
from score_sde.sde import VPSDE, expand
from score_sde.times import low_discrepancy
from score_sde.uncertainty import NAME, NUM_FEATURES, initial, log_size
from tests.commands import DIGITS, FEW, TINY, as_users_have_it, refused, succeed

KEY = jax.random.key(7)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=NUM_FEATURES), jnp.float32)
SMOOTH = jnp.where(jnp.arange(NUM_FEATURES) < 6, 2.0 * WEIGHTS, 0.0)


def test_u_becomes_the_logarithm_of_the_loss_at_each_level():
    """A score whose error is known: for data at 0 it is sqrt(c(t)) everywhere, and the loss c(t). c
    spans a factor of 50. The loss is convex in the weights of u, and its gradient 0 at u = log c,
    example by example. 500 updates of Adam come within 0.07, at the end of the levels."""
    sde, x0 = VPSDE(), jnp.zeros((256, 2))

    def score(x, t):
        sigma, size = sde.sigma(t), jnp.exp(0.5 * log_size(SMOOTH, sde.log_snr(t)))
        return (expand(size, x) - x / expand(sigma, x)) / expand(sigma, x)

    def loss(weights, key):
        settings = {"loss": Pair("log_snr", "epsilon"), "t_min": 1e-3}
        u = lambda log_snr: log_size(weights, log_snr)  # noqa: E731
        return jnp.mean(denoising_score_matching(key, sde, score, x0, log_size=u, **settings))

    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 500))

    def step(carry, key):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights, key), state)
        return (optax.apply_updates(weights, updates), state), None

    begin = jnp.asarray(initial()[NAME])
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(KEY, 500))[0][0])
    with as_users_have_it():  # optax promotes dtypes
        trained = train((begin, optimizer.init(begin)))
    log_snr = sde.log_snr(jnp.linspace(1e-3, 1.0, 50))
    wanted = log_size(SMOOTH, log_snr)
    assert np.ptp(wanted) > 3.9
    np.testing.assert_allclose(log_size(trained, log_snr), wanted, atol=0.1)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(SMOOTH, KEY), 0.0, atol=1e-4)


def model_of(p, sde):
    return Model(p, sde, lambda p, x, *_: p * x, "flow", "time")


@pytest.mark.parametrize(
    ("sde", "name"),
    [(VPSDE(), "paper"), (EDM(), "edm"), (Flow(), "flow")],
    ids=["vp", "edm", "flow"],
)
def test_the_network_s_gradient_is_divided_by_e_to_the_u(sde, name):
    """Example by example, with alpha(T) = 0 too; float32 rounds at 1e-6."""
    x0 = jax.random.normal(KEY, (16, 3))
    settings = {"loss": LOSSES[name], "t_min": 0.01}

    def losses(p, weights=None):
        model = model_of(p, sde)
        u = None if weights is None else lambda log_snr: log_size(weights, log_snr)
        return denoising_score_matching(
            KEY, sde, model, x0, error=model.error, log_size=u, **settings
        )

    p = jnp.float32(0.7)
    t, _ = sample_times(jax.random.split(KEY)[0], sde, 16, **settings)
    u = log_size(WEIGHTS, sde.log_snr(t))
    plain = losses(p)
    np.testing.assert_allclose(losses(p, WEIGHTS), plain * jnp.exp(-u) + u, rtol=1e-4, atol=1e-4)
    of_network = jax.jacobian(losses)(p, WEIGHTS)
    np.testing.assert_allclose(of_network, jax.jacobian(losses)(p) * jnp.exp(-u), rtol=1e-4)
    # And u's is 1 - L e^-u.
    of_u = jax.grad(lambda weights: jnp.sum(losses(p, weights)))(WEIGHTS)[0]  # the feature 1
    np.testing.assert_allclose(of_u, jnp.sum(1.0 - plain * jnp.exp(-u)), rtol=1e-3, atol=1e-3)


def test_discrete_levels_have_it_too():
    sde, x0 = VPSDE(), jax.random.normal(KEY, (16, 3))
    chain = discretization(sde).chain(100)
    level = jnp.minimum((low_discrepancy(jax.random.split(KEY)[0], 16) * 100).astype(int), 99)
    plain, found = (
        discrete_score_matching(KEY, chain, lambda x, level: -x, x0, log_size=u)
        for u in (None, lambda log_snr: log_size(WEIGHTS, log_snr))
    )
    u = log_size(WEIGHTS, chain.log_snr()[level])
    np.testing.assert_allclose(found, plain * jnp.exp(-u) + u, rtol=1e-4, atol=1e-4)


SHORT = (*TINY, "--config.training.schedule_steps=4")
LEARNS = "--config.training.uncertainty"


def weights_of(run):
    return run.score.params["constants"][NAME]


def test_a_run_learns_it(tmp_path):
    few = ("--config.training.num_steps=2", "--config.training.sample_every=0")
    succeed("--mode=train", DIGITS, *SHORT, LEARNS, *few, "--workdir=run", cwd=tmp_path)
    assert np.abs(weights_of(score_sde.load(tmp_path / "run"))).min() > 0


@pytest.mark.thorough
def test_a_run_in_parts_learns_it_and_samples_without_it(tiny_run, tmp_path):
    """Begun with the network of a run without it, and ended as such a run's beginning."""
    tiny_run("digits", tmp_path)
    train = ("--mode=train", DIGITS, *SHORT, LEARNS, "--config.training.from=runs/vp_digits")
    told = succeed(*train, "--workdir=whole", cwd=tmp_path)
    assert "weights: the averages of runs/vp_digits, step 4" in told
    succeed(*train, "--workdir=parts", "--config.training.num_steps=2", cwd=tmp_path)
    succeed(*train, "--workdir=parts", cwd=tmp_path)
    whole, parts = (score_sde.load(tmp_path / name) for name in ("whole", "parts"))
    assert np.abs(weights_of(whole)).min() > 0
    jax.tree.map(np.testing.assert_array_equal, whole.score.params, parts.score.params)
    assert "3 images" in succeed("--mode=sample", "--workdir=whole", *FEW, cwd=tmp_path)
    still = ("--config.training.num_steps=1", "--config.training.learning_rate=1e-30")
    plain = ("--mode=train", DIGITS, *SHORT, "--config.training.from=whole", *still)
    succeed(*plain, "--workdir=plain", cwd=tmp_path)
    network = score_sde.load(tmp_path / "plain").score.params
    jax.tree.map(np.testing.assert_array_equal, network, whole.score.params["network"])


def test_a_run_keeps_it(tiny_run, tmp_path):
    tiny_run("digits", tmp_path)
    line = refused("--mode=train", "--workdir=runs/vp_digits", LEARNS, cwd=tmp_path)
    assert "config.training.uncertainty = True (False in runs/vp_digits)" in line
