"""Twisted SMC on a mixture whose posterior has two modes of unequal weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import inverse, oracle
from score_sde.inverse.twisted import _systematic
from score_sde.samplers import DDIM
from score_sde.sde import VPSDE, SubVPSDE
from tests.cases import thorough

MATRIX, Y, SIGMA_Y = jnp.asarray([[1.0, 0.3]]), jnp.asarray([[0.4]]), 0.2
MIXTURE = oracle.gaussian_mixture(
    jnp.asarray([0.3, 0.7]),
    jnp.asarray([[0.5, 1.0], [0.0, -1.0]]),
    jnp.stack([0.1 * jnp.eye(2), jnp.asarray([[0.3, 0.1], [0.1, 0.2]])]),
)


def operator(x):
    return x @ MATRIX.T


@pytest.mark.parametrize("sde", [VPSDE(), *thorough(SubVPSDE())])
def test_the_particles_follow_the_posterior(sde):
    """The weights of the modes, and the mean in each coordinate.

    Over seeds a weight scatters by 0.009 and the means by 0.02 standard deviations, hardly more
    than for 4000 independent draws. Four times that is granted. PiGDM, which proposes, is off by
    0.064: the particles mend it.
    """
    posterior = inverse.pigdm(sde, MIXTURE.score(sde), operator, Y, SIGMA_Y)
    exact = MIXTURE.given(MATRIX, Y[0], SIGMA_Y)
    weight = float(jnp.exp(exact.log_weights[0]))
    means, covariances = (np.asarray(each) for each in exact.moments(sde, 1e-5))
    key, errors = jax.random.key(0), []
    for sampler in (inverse.TwistedSMC(60), DDIM(60, eta=1.0)):
        drawn = sampler.sample(key, sde, posterior, shape=(4000, 2))
        assert drawn.nfe.tolist() == [61 * 2] * 4000  # forth and back
        found = float(exact.posterior(sde, drawn.x, jnp.full(4000, 1e-3)).mean(0)[0])
        offset = (drawn.x.mean(0) - means) / np.sqrt(np.diag(covariances))
        errors.append((abs(found - weight), float(jnp.abs(offset).max())))
    (of_weight, of_mean), proposals = errors
    assert of_weight < 0.04 < proposals[0] and of_mean < 0.08 < proposals[1]


def test_systematic_resampling_is_proportional_up_to_one():
    weights = jnp.asarray([0.5, 0.0, 0.3, 0.15, 0.05])
    for seed in range(5):
        chosen = np.asarray(_systematic(weights, jax.random.key(seed)))
        counts = np.bincount(chosen, minlength=5)
        assert np.all(np.abs(counts - 5 * np.asarray(weights)) < 1)


def test_another_score_is_refused():
    sde = VPSDE()
    with pytest.raises(ValueError, match=r"score = .MixtureScore.: .* of inverse.pigdm"):
        inverse.TwistedSMC(3).sample(jax.random.key(0), sde, MIXTURE.score(sde), shape=(2, 2))
    many = inverse.pigdm(sde, MIXTURE.score(sde), operator, jnp.tile(Y, (2, 1)), SIGMA_Y)
    with pytest.raises(ValueError, match=r"y.shape = \(2, 1\): allowed are \(1, 1\), one for all"):
        inverse.TwistedSMC(3).sample(jax.random.key(0), sde, many, shape=(2, 2))
    exact = inverse.pigdm(sde, MIXTURE.score(sde), operator, Y, 0.0)
    with pytest.raises(ValueError, match=r"sigma_y = 0.0: allowed are numbers above 0"):
        inverse.TwistedSMC(3).sample(jax.random.key(0), sde, exact, shape=(2, 2))
    with pytest.raises(ValueError, match=r"threshold = 1.5: allowed are numbers from 0 to 1"):
        inverse.TwistedSMC(3, threshold=1.5)
