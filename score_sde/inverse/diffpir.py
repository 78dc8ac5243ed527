"""Plug-and-play image restoration, DiffPIR (Zhu et al. 2023, arXiv:2305.08995).

The denoised data are moved to the nearest that explain the measurement (eq. 12a):

    D_y = argmin |y - A x|^2 / sigma_y^2 + lambda alpha^2 / sigma^2 |x - D|^2
        = D + r^2 A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A D),    r^2 = sigma^2 / (lambda alpha^2).

No gradient of the network is needed, so a call costs one evaluation. Their sampler is DDIM; the
share of noise that it adds, zeta, is the square of `eta`, roughly.
"""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from jax import Array

from score_sde.inverse.base import Operator, Posterior, measured
from score_sde.samplers.base import require_positive
from score_sde.score import denoise, pytree
from score_sde.sde import SDE, ScoreFn, expand


def diffpir(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float,
    *,
    strength: float = 7.0,
    iterations: int = 30,
) -> ScoreFn:
    """The score of x_t given y by DiffPIR.

    Args:
        sde: the process.
        score: the unconditional score.
        operator: A, linear, (B, *shape) to (B, *measured).
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise.
        strength: lambda, of the prior: larger stays closer to D. The paper takes 7 to 10.
        iterations: of conjugate gradients. They do not evaluate the network.

    Raises:
        ValueError: a negative sigma_y, a strength or iterations not above 0, an operator that is
            not linear, a process with alpha(T) = 0.
    """
    require_positive(iterations=iterations, strength=strength)
    return _DiffPIR(*measured(sde, score, operator, y, sigma_y), strength, iterations)


@pytree
class _DiffPIR(Posterior):
    strength: Any
    iterations: int = field(metadata={"static": True})

    passes = 1

    def estimate(self, x: Array, t: Array) -> tuple[Array, Array]:
        x0 = denoise(self.sde, self.score, x, t)
        r2 = jnp.square(self.sde.sigma(t) / self.sde.alpha(t)) / self.strength
        _, solved = self._solved(x0, r2, self.iterations)
        moved = expand(r2, x) * self._transpose(solved, x0)
        return x0, moved / expand(self._lift(t), x)
