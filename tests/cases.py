"""The processes and the distributions that the tests of processes, samplers and likelihood run
over."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde import oracle
from score_sde.sde import SDE, VESDE, VPSDE, ScoreFn, SubVPSDE, expand


class Cosine(SDE):
    """A user's own process: everything but the pair is derived (Nichol, Dhariwal 2021, without the
    offset)."""

    T = 0.99

    def alpha(self, t: Array) -> Array:
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t: Array) -> Array:
        return jnp.sin(0.5 * jnp.pi * t)


PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
PROCESSES = {**PUBLISHED, "cosine": Cosine()}


def recorded_score(sde: SDE, mean: Array, std: float) -> ScoreFn:
    """The analytic score of the recorded steps: data N(mean, std^2 I)."""

    def score(x: Array, t: Array) -> Array:
        alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
        return -(x - alpha * mean[None]) / (jnp.square(alpha * std) + jnp.square(sigma))

    return score


def overlapping_mixture(dims: int) -> oracle.GaussianMixture:
    """Two Gaussians of unequal weight whose modes overlap, with correlated components."""
    rng = np.random.default_rng(dims)
    factors = rng.normal(size=(2, dims, dims)) / np.sqrt(dims)
    covariances = 0.1 * np.eye(dims) + 0.1 * factors @ np.swapaxes(factors, 1, 2)
    direction = rng.normal(size=dims) / np.sqrt(dims)
    means = np.stack([0.8 * direction, -0.5 * direction])
    weights = np.asarray([0.35, 0.65])
    return oracle.gaussian_mixture(
        *(jnp.asarray(a, jnp.float32) for a in (weights, means, covariances))
    )
