"""Replacement: after each step the measured part of the state is that of the measurement.

For exact measurements y = A x0 the state must have A x_t = alpha y + sigma A z. The projection

    x  ->  x + A^+ (alpha y + sigma A z - A x),         A^+ = A^T (A A^T)^-1

sets it, with fresh noise z each time, and leaves the rest (Song et al. 2021, appendix I.2 and I.3:
inpainting, where A is a mask, and colorizing, where A is the grey image). The rest follows the
unconditional score, so it learns of y by the network alone, and too late: the samples are not those
of the posterior.

By `PredictorCorrector(faithful=True)` it is the original code's algorithm: see there. What is
returned then has no noise in the measured part, and the noise of t_min in the rest. By any other
sampler with fixed steps the projection acts once after each step, at the time reached, and the last
denoising is that of the whole state.
"""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.inverse.base import (
    Operator,
    conjugate_gradients,
    fitting,
    measured,
    transpose,
)
from score_sde.score import pytree
from score_sde.sde import SDE, ScoreFn, expand


def replacement(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float = 0.0,
    *,
    iterations: int = 1,
) -> "Replacement":
    """The projection for the argument ``project`` of a sampler with fixed steps.

    Args:
        sde: the process.
        score: without effect; as of the other methods.
        operator: A, linear, (B, *shape) to (B, *measured).
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise. The noise that is added is less by it. Where it
            is more than the state's own, the state is left as it is.
        iterations: of conjugate gradients for A^+. One is exact for masks, grey images and means
            over blocks, where A A^T is a multiple of a projection.

    Raises:
        ValueError: a negative sigma_y, an operator that is not linear, a process with alpha(T) = 0.
    """
    sde, _, operator, y, sigma_y = measured(sde, score, operator, y, sigma_y)
    return Replacement(sde, operator, y, sigma_y, iterations)


@pytree
class Replacement:
    """The projection that `replacement` returns."""

    sde: SDE
    operator: Any
    y: Array
    sigma_y: Any
    iterations: int = field(metadata={"static": True})

    def __call__(self, x: Array, t: Array, keys: Array) -> Array:
        """The states x (B, *shape) with the measured part at t (B,); keys (B,)."""
        alpha = self.sde.alpha(t)
        left = jnp.square(self.sde.sigma(t)) - jnp.square(alpha * self.sigma_y)
        z = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        noise = expand(jnp.sqrt(jnp.maximum(left, 0.0)), x) * z
        return jnp.where(expand(left >= 0, x), self._set(x, alpha, noise), x)

    def mean(self, x: Array, t: Array) -> Array:
        """The states with a measured part without noise."""
        return self._set(x, self.sde.alpha(t), jnp.zeros_like(x))

    def _set(self, x: Array, alpha: Array, noise: Array) -> Array:
        """x + A^+ (alpha y + A noise - A x)."""
        found = self.operator(x - noise)
        missing = expand(alpha, found) * fitting(self.y, found) - found

        def apply(v: Array) -> Array:
            return self.operator(transpose(self.operator, v, x))

        solved = conjugate_gradients(apply, missing, self.iterations)
        return x + transpose(self.operator, solved, x)
