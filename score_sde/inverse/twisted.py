"""The twisted diffusion sampler, sequential Monte Carlo (Wu et al. 2023, arXiv:2306.17775).

A batch of particles for one measurement. Each step proposes by an approximate score of the
posterior, and weighs the particles by what the approximation leaves out (their algorithm 1):

    w  *=  p(x_s | x_t) psi_s(x_s) / (q(x_s | x_t) psi_t(x_t)),      psi_t(x) ~ p(y | x_t = x)

with p the unconditional step, q the proposal and psi the twisting functions, here those of PiGDM,
and at the end p(y | x0) itself. So the weighted particles follow the posterior as their number
grows, for any psi, up to the error of the unconditional steps. Their number must grow with what y
tells beyond psi. So it judges the other methods, rather than replaces them.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.errors import require
from score_sde.samplers.base import require_fraction, require_positive
from score_sde.samplers.grids import GridSampler
from score_sde.samplers.stepped import PROJECTION, Context
from score_sde.sde import SDE


@dataclass(frozen=True)
class TwistedSMC(GridSampler):
    """Draws of one posterior by particles: `sample` with the score of `pigdm`, whose ``y`` is one
    measurement, (1, *measured), and B particles, ``shape=(B, *shape)``. The steps are DDIM's of
    eta = 1.

    The samples have equal weights, and some are copies of one another.

    Attributes:
        threshold: particles are resampled where their effective number falls below this share.
        num_steps and the others: as of every ``GridSampler``; a step is two passes.
    """

    num_steps: int = 100
    threshold: float = field(default=0.5, kw_only=True)

    coupled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(threshold=self.threshold)

    def check_start(self, sde: SDE, score: Any) -> None:
        super().check_start(sde, score)
        kind = type(score).__name__
        require(hasattr(score, "twisted"), "score", kind, "those of inverse.pigdm")
        one = (1, *score.y.shape[1:])  # particles take each other's places
        require(score.y.shape == one, "y.shape", score.y.shape, f"{one}, one for all particles")
        require_positive(sigma_y=score.sigma_y)  # the weights at the end are of its density

    def tables(self, sde: SDE, times: Array) -> tuple[Array, ...]:
        posterior_std = sde.reverse_step(times[1:], times[:-1]).posterior_std
        return sde.alpha(times), sde.sigma(times), posterior_std

    def memory(self, x: Array) -> Array:
        """The logarithms of the weights, without the twisting function of the present states."""
        return jnp.zeros(len(x), x.dtype)

    def step(self, x: Array, memory: Array, i: Array, c: Context) -> tuple[Array, Array]:
        alpha, sigma, posterior_std = c.tables
        twist, std = c.score.twisted(x, c.t(i)), posterior_std[i]
        kept = jnp.sqrt(jnp.maximum(jnp.square(sigma[i + 1]) - jnp.square(std), 0.0))

        def mean(x0: Array) -> Array:
            return alpha[i + 1] * x0 + kept * (x - alpha[i] * x0) / sigma[i]

        lift = jnp.square(sigma[i]) / alpha[i]
        free, guided = mean(twist.x0), mean(twist.x0 + lift * twist.gradient)
        chosen, weights = self._resampled(memory + twist.log_potential, i, c)
        free, guided = free[chosen], guided[chosen]
        z, shift = c.noise(x, i), (guided - free) / std
        # log p(x_s | x_t) - log q(x_s | x_t) at x_s = guided + std z
        ratio = -jnp.sum(shift * (z + 0.5 * shift), axis=range(1, x.ndim))
        return guided + std * z, weights + ratio - twist.log_potential[chosen]

    def end(self, x: Array, memory: Array, c: Context) -> Array:
        last = len(c.times) - 1
        twist = c.score.twisted(x, c.t(last))
        weights = memory + twist.log_prob
        chosen = _systematic(jax.nn.softmax(weights), self._key(last, c))
        return (twist.x0 if self.denoise else x)[chosen]

    def _resampled(self, log_weights: Array, i: Array, c: Context) -> tuple[Array, Array]:
        """The particles that go on, by their indices (B,), and the logarithms of their weights."""
        weights, number = jax.nn.softmax(log_weights), len(log_weights)
        few = 1.0 / jnp.sum(jnp.square(weights)) < self.threshold * number
        chosen = _systematic(weights, self._key(i, c))
        chosen = jnp.where(few, chosen, jnp.arange(number))
        return chosen, jnp.where(few, 0.0, log_weights - jax.nn.logsumexp(log_weights))

    @staticmethod
    def _key(i: Array | int, c: Context) -> Array:
        return jax.random.fold_in(jax.random.fold_in(c.keys[0], PROJECTION), i)


def _systematic(weights: Array, key: Array) -> Array:
    """Indices (B,): each as often as its weight (B,) says, rounded up or down."""
    number = len(weights)
    offset = jax.random.uniform(key, (), weights.dtype)
    places = (jnp.arange(number, dtype=weights.dtype) + offset) / number
    chosen = jnp.searchsorted(jnp.cumsum(weights), places, method="sort")  # no loop within
    return jnp.minimum(chosen, number - 1)
