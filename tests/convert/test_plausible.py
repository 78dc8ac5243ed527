"""Networks that predict noise, and such that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.convert.plausible import LEAST_IMAGE, noise_errors
from score_sde.discrete import DiscreteVPSDE
from score_sde.score import Model
from score_sde.sde import VESDE, VPSDE
from tests.cases import thorough

SPREAD = 0.2  # of the data, which are normal about the middle of their range
MIDDLE = {"vp": 0.0, "ve": 0.5}
PROCESSES = {"vp": VPSDE(), "ve": VESDE()}


def model(name, wrong=lambda output, x: output, parameterization="epsilon"):
    """The exact noise E[z | x_t], or the velocity, made wrong by a function of it."""
    sde = PROCESSES[name]

    def apply(params, x, noise, condition):
        t = noise[:, None, None, None] / 999.0
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        r = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
        state = r * x if parameterization == "velocity" else x
        variance = jnp.square(alpha * SPREAD) + jnp.square(sigma)
        epsilon = sigma * (state - alpha * MIDDLE[name]) / variance
        if parameterization == "velocity":  # (alpha z - sigma x0) / r, of x = alpha x0 + sigma z
            return wrong((r * epsilon - sigma * x) / alpha, x)
        return wrong(epsilon, x)

    return Model(None, sde, apply, parameterization, "time")


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
    # Its own images have some 5 % less spread than the data: that is how coarse ten steps are. The
    # errors are less by that, too.
    np.testing.assert_allclose(found.error, 0.95 * expected, rtol=0.1)
    assert found.failure() == ""


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
    told = errors(name, wrong).failure()
    assert told.startswith("its error in predicting the noise") and "\n" not in told


@pytest.mark.thorough
def test_a_chain_of_three_levels_is_drawn_in_two_steps():
    sde = DiscreteVPSDE((0.1, 0.2, 0.4))
    model = Model(None, sde, lambda params, x, *_: x, "epsilon", "time", 3, "matched")
    found = noise_errors(jax.random.key(0), model, jnp.ones((2, 4, 4, 1)), -1.0, 1.0)
    assert np.isfinite(found.error).all()


@pytest.mark.parametrize("name", ["vp", *thorough("ve")])
def test_the_bias_is_the_mean_square_of_what_a_velocity_is_off_by(name):
    """A wave of this size in it is one in the denoised images, times sigma / r. It is so short that
    it is as good as noise, which its own images do not take on."""
    size = 0.2
    right = errors(name, lambda v, x: v, "velocity")
    assert right.failure() == ""
    wrong = errors(name, lambda v, x: v + size * jnp.sin(1e3 * x), "velocity")
    told = wrong.failure()
    assert told.startswith("the bias of its denoised images")
    taken = right.log_snr > LEAST_IMAGE
    assert 3 < taken.sum() < len(taken) and not np.any(wrong.bias[~taken])
    share = 1 / (1 + np.exp(wrong.log_snr[taken]))  # sigma^2 / r^2
    np.testing.assert_allclose(wrong.bias[taken], share * size**2 / 2 / SPREAD**2, rtol=0.3)
    assert np.all(np.abs(right.bias) < 0.02)
