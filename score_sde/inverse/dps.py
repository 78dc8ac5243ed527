"""Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687).

p(y | x_t) is taken to be p(y | x0) at x0 = D, the mean of x0 given x_t. So the spread of x0 about D
is left out, and the samples are too close to y. It needs the gradient alone: any operator will do.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.inverse.base import Operator, Posterior, measured
from score_sde.samplers.base import norm, require_positive
from score_sde.score import pytree
from score_sde.sde import SDE, ScoreFn, expand

STEPS = 1000  # of the published sampler, which its step size belongs to


def dps(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float,
    *,
    zeta: float | None = 1.0,
) -> ScoreFn:
    """The score of x_t given y by DPS.

    Args:
        sde: the process.
        score: the unconditional score.
        operator: A, (B, *shape) to (B, *measured), not necessarily linear.
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise. Without effect unless zeta is None.
        zeta: step size as in the published code, x - zeta grad |y - A(D)| in each of 1000 steps.
            Here it is spread over time, so that the number of steps does not matter. None is the
            paper's theorem 1: the gradient of log N(y; A(D), sigma_y^2 I). It is stiff: the steps
            must be shorter than about sigma_y^2.

    Raises:
        ValueError: a negative sigma_y, or 0 where zeta is None; a zeta not above 0; a process with
            alpha(T) = 0.
    """
    fields = measured(sde, score, operator, y, sigma_y)
    require_positive(**({"sigma_y": sigma_y} if zeta is None else {"zeta": zeta}))
    return _DPS(*fields, zeta)


@pytree
class _DPS(Posterior):
    zeta: Any

    passes = 2

    def estimate(self, x: Array, t: Array) -> tuple[Array, Array]:
        x0, pull = self._denoised_and_pull(x, t)
        offset, pull_offset = jax.vjp(self._offset, x0)
        if self.zeta is None:
            return x0, -pull(pull_offset(offset / self._noise_variance(offset))[0])
        size = norm(offset)
        # Of reverse diffusion, whose step adds g^2 T / STEPS times the score.
        factor = self.zeta * STEPS / (self.sde.T * jnp.square(self.sde.diffusion(t)))
        unit = expand(factor / jnp.where(size > 0, size, 1), offset) * offset
        return x0, -pull(pull_offset(unit)[0])
