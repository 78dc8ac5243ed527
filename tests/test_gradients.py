"""Reverse-mode gradients through the flow and the likelihood, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import oracle

CHECK = """
import jax, jax.numpy as jnp, numpy as np
from score_sde.likelihood import log_likelihood
from score_sde.samplers import ProbabilityFlow
from score_sde.sde import VPSDE, SDE
from score_sde import losses

X0 = jnp.asarray([[0.3, -0.4], [0.1, 0.9]])
TIGHT = dict(rtol=1e-9, atol=1e-9)

def score(scale, x, t):  # no exact score: gradients must pass through all of it
    return -x / (scale + t[:, None]) + 0.1 * jnp.sin(x)

def log_prob(x0, scale, beta_max):
    sde = VPSDE(0.1, beta_max)
    found = log_likelihood(jax.random.key(0), sde, lambda x, t: score(scale, x, t), x0,
                           divergence="exact", **TIGHT)
    return jnp.sum(found.log_prob)

def end(x0, scale, beta_max):
    flow = ProbabilityFlow(denoise=False, **TIGHT)
    out = flow.encode(VPSDE(0.1, beta_max), lambda x, t: score(scale, x, t), x0)
    return jnp.sum(jnp.square(out.x))

for function in (log_prob, end):
    point = (X0, jnp.asarray(0.4), jnp.asarray(12.0))
    found = jax.grad(function, (0, 1, 2))(*point)
    h = 1e-5
    for index, step in ((1, h), (2, h)):
        moved = [tuple(v + s * (i == index) for i, v in enumerate(point)) for s in (step, -step)]
        expected = (function(*moved[0]) - function(*moved[1])) / (2 * step)
        # Finite differences of solves at 1e-9: (1e-9 x some 100) / 1e-5, beside gradients of 1.
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)
        assert abs(expected) > 1e-2
    d = np.zeros_like(X0); d[1, 0] = h
    expected = (function(X0 + d, *point[1:]) - function(X0 - d, *point[1:])) / (2 * h)
    np.testing.assert_allclose(found[0][1, 0], expected, rtol=1e-4, atol=1e-5)

# jax.jvp is refused, not answered with zeros.
try:
    jax.jvp(lambda x0: log_prob(x0, 0.4, 12.0), (X0,), (X0,))
except TypeError as error:
    assert "forward-mode" in str(error), error
else:
    raise AssertionError("forward mode went through")

# A schedule learned through the loss: times drawn by log-SNR depend on the process's constants.
class Cosine(SDE):
    T = 0.99
    power: float = 1.0
    def alpha(self, t): return jnp.cos(0.5 * jnp.pi * t**self.power)
    def sigma(self, t): return jnp.sin(0.5 * jnp.pi * t**self.power)

def inverse(power, log_snr):
    return jnp.sum(Cosine(power).inverse_log_snr(log_snr))

levels = jnp.asarray([-3.0, 0.0, 2.0])
by_power, by_level = jax.grad(inverse, (0, 1))(jnp.asarray(1.3), levels)
h = 1e-6
np.testing.assert_allclose(
    by_power, (inverse(1.3 + h, levels) - inverse(1.3 - h, levels)) / (2 * h), rtol=1e-5)
np.testing.assert_allclose(
    by_level[1], (inverse(1.3, levels.at[1].add(h)) - inverse(1.3, levels.at[1].add(-h))) / (2 * h),
    rtol=1e-5)

def loss(power):
    sde = Cosine(power)
    values = losses.denoising_score_matching(
        jax.random.key(1), sde, lambda x, t: -x, X0, weighting="likelihood", t_min=1e-3)
    return jnp.mean(values)

h = 1e-5
np.testing.assert_allclose(
    jax.grad(loss)(jnp.asarray(1.3)), (loss(1.3 + h) - loss(1.3 - h)) / (2 * h), rtol=1e-4)
print("gradients agree")
"""


def test_gradients_agree_with_finite_differences_in_float64(run_python):
    assert "gradients agree" in run_python(CHECK, env={"JAX_ENABLE_X64": "1"}).stdout


def test_the_gradient_of_log_p_is_the_score():
    """In float32, with respect to the points: grad log p(x0) at t_min is the score there."""
    from score_sde.likelihood import log_likelihood
    from score_sde.sde import VPSDE

    sde, target = VPSDE(), oracle.gaussian(jnp.asarray([0.5, -0.5]), 0.3 * jnp.eye(2))
    x0, score = jnp.asarray([[0.1, 0.2], [0.9, -0.7]]), target.score(sde)

    def log_prob(x0):
        found = log_likelihood(jax.random.key(0), sde, score, x0, divergence="exact")
        return jnp.sum(found.log_prob)

    # The prior at T is wrong by alpha(T) = 0.0066 times the mean: of that size is the error.
    expected = score(x0, jnp.full(2, 1e-5))
    np.testing.assert_allclose(jax.grad(log_prob)(x0), expected, atol=0.02)
