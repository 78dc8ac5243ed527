"""Reverse-mode gradients through the flow and the likelihood, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import losses, oracle
from score_sde.likelihood import log_likelihood
from score_sde.samplers import ExponentialMultistep, ProbabilityFlow
from score_sde.schedules import Cosine
from score_sde.sde import SDE, VPSDE
from tests.cases import thorough
from tests.commands import as_users_have_it

X0 = np.asarray([[0.3, -0.4], [0.1, 0.9]])
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def float64():
    with as_users_have_it(), jax.enable_x64(True):
        yield


def score(scale, x, t):
    """No exact one: gradients must pass through all of it."""
    return -x / (scale + t[:, None]) + 0.1 * jnp.sin(x)


# By Partial: a new function at each call would be compiled anew.
def log_prob(x0, scale, beta_max):
    sde, key = VPSDE(0.1, beta_max), jax.random.key(0)
    found = log_likelihood(key, sde, Partial(score, scale), x0, divergence="exact", **TIGHT)
    return jnp.sum(found.log_prob)


def end(x0, scale, beta_max):
    flow = ProbabilityFlow(denoise=False, **TIGHT)
    return jnp.sum(jnp.square(flow.encode(VPSDE(0.1, beta_max), Partial(score, scale), x0).x))


def by_closure(x0, scale, beta_max):
    """As a user would write it: a new function that closes over what is traced."""
    sde, key = VPSDE(0.1, beta_max), jax.random.key(0)

    def own(x, t):
        return score(scale, x, t)

    return jnp.sum(log_likelihood(key, sde, own, x0, divergence="rademacher", **TIGHT).log_prob)


def decoded(x0, scale, beta_max):
    flow = ProbabilityFlow(step_control="batch", **TIGHT)
    return jnp.sum(jnp.square(flow.decode(VPSDE(0.1, beta_max), Partial(score, scale), x0).x))


def stepped(x0, scale, beta_max):
    sampler, sde = ExponentialMultistep(8, corrector=True), VPSDE(0.1, beta_max)
    return jnp.sum(sampler.sample(jax.random.key(0), sde, Partial(score, scale), x0).x ** 2)


def from_the_end(x0, scale, last):
    """With respect to T of a process, too."""
    sde, key = Cosine(last / 15.0), jax.random.key(0)
    found = log_likelihood(key, sde, Partial(score, scale), x0, divergence="exact", **TIGHT)
    return jnp.sum(found.log_prob)


@pytest.mark.parametrize(
    "function", [log_prob, end, *thorough(by_closure, decoded, stepped, from_the_end)]
)
def test_gradients_agree_with_finite_differences(function, float64):
    point, h = (jnp.asarray(X0), jnp.asarray(0.4), jnp.asarray(12.0)), 1e-5
    found = jax.grad(function, (0, 1, 2))(*point)
    assert found[0].dtype == jnp.float64
    one = np.zeros_like(X0)
    one[1, 0] = 1.0
    for index, direction in enumerate((one, 1.0, 1.0)):
        ends = []
        for step in (h, -h):
            moved = list(point)
            moved[index] = moved[index] + step * direction
            ends.append(function(*moved))
        expected = (ends[0] - ends[1]) / (2 * h)
        # Finite differences of solves at 1e-9: (1e-9 x some 100) / 1e-5, beside gradients of 1.
        along = jnp.sum(found[index] * direction)
        np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-5)
        assert abs(expected) > 1e-2


def test_forward_mode_is_refused_and_not_answered_with_zeros(float64):
    x0 = jnp.asarray(X0)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x0: log_prob(x0, jnp.asarray(0.4), jnp.asarray(12.0)), (x0,), (x0,))


class Power(SDE):
    """A schedule that is learned through the loss."""

    T = 0.99
    power: float = 1.0

    def alpha(self, t):
        return jnp.cos(0.5 * jnp.pi * t**self.power)

    def sigma(self, t):
        return jnp.sin(0.5 * jnp.pi * t**self.power)


def test_times_drawn_by_log_snr_depend_on_the_processs_constants(float64):
    @jax.jit
    def inverse(power, log_snr):
        return jnp.sum(Power(power).inverse_log_snr(log_snr))

    @jax.jit
    def loss(power):
        key, x0 = jax.random.key(1), jnp.asarray(X0)
        settings = {"loss": losses.LOSSES["likelihood"], "t_min": 1e-3}
        sde = Power(power)
        return jnp.mean(losses.denoising_score_matching(key, sde, lambda x, t: -x, x0, **settings))

    # Central differences in float64: rounding is 1e-16 / h, the next term h^2 = 1e-10 at most.
    power, levels, h = jnp.asarray(1.3), jnp.asarray([-3.0, 0.0, 2.0]), 1e-6
    by_power, by_level = jax.grad(inverse, (0, 1))(power, levels)
    expected = (inverse(power + h, levels) - inverse(power - h, levels)) / (2 * h)
    np.testing.assert_allclose(by_power, expected, rtol=1e-7)
    ends = [inverse(power, levels + h * np.asarray([0.0, sign, 0.0])) for sign in (1, -1)]
    np.testing.assert_allclose(by_level[1], (ends[0] - ends[1]) / (2 * h), rtol=1e-7)
    h = 1e-5
    expected = (loss(power + h) - loss(power - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(power), expected, rtol=1e-7)


@pytest.mark.thorough
def test_the_gradient_of_log_p_is_the_score():
    """In float32, with respect to the points: grad log p(x0) at t_min is the score there."""
    sde, target = VPSDE(), oracle.gaussian(jnp.asarray([0.5, -0.5]), 0.3 * jnp.eye(2))
    x0, score = jnp.asarray([[0.1, 0.2], [0.9, -0.7]]), target.score(sde)

    def log_prob(x0):
        found = log_likelihood(jax.random.key(0), sde, score, x0, divergence="exact")
        return jnp.sum(found.log_prob)

    # The prior at T is wrong by alpha(T) = 0.0066 times the mean: of that size is the error.
    expected = score(x0, jnp.full(2, 1e-5))
    np.testing.assert_allclose(jax.grad(log_prob)(x0), expected, atol=0.02)
