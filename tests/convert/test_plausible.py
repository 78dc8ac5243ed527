"""Networks that predict noise, and such that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.convert.plausible import noise_errors
from score_sde.score import Model
from score_sde.sde import VESDE, VPSDE

SPREAD = 0.2  # of the data, which are normal about the middle of their range
MIDDLE = {"vp": 0.0, "ve": 0.5}
PROCESSES = {"vp": VPSDE(), "ve": VESDE()}


def model(name, wrong=lambda epsilon, x: epsilon):
    """The exact noise E[z | x_t], made wrong by a function of it."""
    sde = PROCESSES[name]

    def apply(params, x, noise, condition):
        t = noise[:, None, None, None] / 999.0
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = jnp.square(alpha * SPREAD) + jnp.square(sigma)
        return wrong(sigma * (x - alpha * MIDDLE[name]) / variance, x)

    return Model(None, sde, apply, "epsilon", "time")


def errors(name, *wrong):
    sde = PROCESSES[name]
    x_T = sde.prior_std() * jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    low = -1.0 if name == "vp" else 0.0
    return noise_errors(jax.random.key(1), model(name, *wrong), x_T, low, 1.0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_network_is_within_its_bounds(name):
    """epsilon - z has the standard deviation alpha s / sqrt(alpha^2 s^2 + sigma^2)."""
    found = errors(name)
    nu = np.exp(-0.5 * found.log_snr)
    expected = SPREAD / np.sqrt(SPREAD**2 + nu**2)
    # Its own images have some 15 % less spread than the data: that is how coarse ten steps of DDIM
    # are. The errors are less by that, too.
    np.testing.assert_allclose(found.error, 0.85 * expected, rtol=0.1)
    assert found.worst() is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda epsilon, x: 0.8 * epsilon,
        lambda epsilon, x: -epsilon,
        lambda epsilon, x: epsilon + 0.15,
        lambda epsilon, x: jnp.zeros_like(x),
        lambda epsilon, x: epsilon + jnp.nan,
    ],
)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_network_that_is_wrong_by_a_fifth_is_noticed(name, wrong):
    assert errors(name, wrong).worst() is not None
