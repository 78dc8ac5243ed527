"""Moment matching posterior sampling (Rozet et al. 2024, arXiv:2405.13712, section 4.2).

x0 given x_t is taken to be N(D, V) with its true covariance V = (sigma^2 / alpha) dD/dx, so that

    p(y | x_t) = N(y; A D, A V A^T + sigma_y^2 I).                                    (eq. 19, 20)

V is never formed: conjugate gradients multiply by it, at a pass back through the network each. For
Gaussian data the method is exact, with as many iterations as y has numbers.
"""

from dataclasses import field

from jax import Array

from score_sde.inverse.base import Operator, Posterior, conjugate_gradients, measured
from score_sde.samplers.base import require_positive
from score_sde.score import pytree
from score_sde.sde import SDE, ScoreFn, expand


def mmps(
    sde: SDE,
    score: ScoreFn,
    operator: Operator,
    y: Array,
    sigma_y: float,
    *,
    iterations: int = 3,
) -> ScoreFn:
    """The score of x_t given y by MMPS.

    Args:
        sde: the process.
        score: the unconditional score.
        operator: A, linear, (B, *shape) to (B, *measured).
        y: measurements, (B, *measured) or (1, *measured).
        sigma_y: standard deviation of their noise, above 0.
        iterations: of conjugate gradients, a pass back through the network each.

    Raises:
        ValueError: sigma_y or iterations not above 0, an operator that is not linear, a process
            with alpha(T) = 0.
    """
    require_positive(iterations=iterations)
    fields = measured(sde, score, operator, y, sigma_y)
    require_positive(sigma_y=sigma_y)
    return _MMPS(*fields, iterations)


@pytree
class _MMPS(Posterior):
    iterations: int = field(metadata={"static": True})

    @property
    def passes(self) -> int:
        return 2 + self.iterations

    def estimate(self, x: Array, t: Array) -> tuple[Array, Array]:
        x0, pull = self._denoised_and_pull(x, t)
        lift = expand(self._lift(t), x)

        def apply(v: Array) -> Array:
            spread = self._multiply(lift * pull(self._transpose(v, x0)))
            return spread + self._noise_variance(v) * v

        offset = self._offset(x0)
        # No true covariance has less than sigma_y^2. The Jacobian of a network may not be one.
        least = 0.5 * self._noise_variance(offset)
        solved = conjugate_gradients(apply, offset, self.iterations, least)
        return x0, pull(self._transpose(solved, x0))
