"""Pseudoinverse-guided diffusion, PiGDM (Song et al. 2023, OpenReview 9_gsMA8MRKQ).

x0 given x_t is taken to be N(D, r^2 I), so that

    p(y | x_t) = N(y; A D, r^2 A A^T + sigma_y^2 I),   r^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2)

with s^2 the variance of the data. r^2 is the variance of x0 given x_t for data N(0, s^2 I), for
which the method is exact.
"""

from dataclasses import field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from score_sde.inverse.base import Operator, Posterior, dot, measured
from score_sde.samplers.base import require_positive
from score_sde.score import pytree
from score_sde.sde import SDE, ScoreFn


def pigdm(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float,
    *,
    data_std: float = 1.0,
    iterations: int = 30,
) -> ScoreFn:
    """The score of x_t given y by PiGDM.

    Args:
        sde: the process.
        score: the unconditional score.
        operator: A, linear, (B, *shape) to (B, *measured).
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise.
        data_std: s, the standard deviation of the data about their mean.
        iterations: of conjugate gradients for (r^2 A A^T + sigma_y^2 I)^-1. They do not evaluate
            the network.

    Raises:
        ValueError: a negative sigma_y, a data_std or iterations not above 0, an operator that is
            not linear, a process with alpha(T) = 0.
    """
    require_positive(iterations=iterations, data_std=data_std)
    return PiGDM(*measured(sde, score, operator, y, sigma_y), data_std, iterations)


class Twist(NamedTuple):
    """An estimate at x_t.

    Attributes:
        x0: E[x0 | x_t], (B, *shape).
        gradient: of log p(y | x_t), (B, *shape).
        log_potential: log p(y | x_t) up to a number that depends on t alone, (B,).
        log_prob: log p(y | x0) at this x0, up to a constant, (B,).
    """

    x0: Array
    gradient: Array
    log_potential: Array
    log_prob: Array


@pytree
class PiGDM(Posterior):
    """The score that `pigdm` returns."""

    data_std: Any
    iterations: int = field(metadata={"static": True})

    passes = 2

    def estimate(self, x: Array, t: Array) -> tuple[Array, Array]:
        twist = self.twisted(x, t)
        return twist.x0, twist.gradient

    def twisted(self, x: Array, t: Array) -> Twist:
        """What twisted SMC needs at x (B, *shape), t (B,)."""
        x0, pull = self._denoised_and_pull(x, t)
        sigma2, data2 = jnp.square(self.sde.sigma(t)), jnp.square(self.data_std)
        r2 = sigma2 * data2 / (jnp.square(self.sde.alpha(t)) * data2 + sigma2)
        offset, solved = self._solved(x0, r2, self.iterations)
        gradient = pull(self._transpose(solved, x0))
        log_prob = -0.5 * dot(offset, offset) / self._noise_variance(offset)
        return Twist(x0, gradient, -0.5 * dot(offset, solved), log_prob)
