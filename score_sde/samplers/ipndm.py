"""iPNDM: the plain multistep method in the noise (Zhang and Chen 2022, arXiv:2204.13902).

In y = x / alpha and nu = sigma / alpha the probability flow of every process is the same,

    dy/dnu = epsilon(x, t),     epsilon = (x - alpha D) / sigma,     D = E[x0 | x].

A multistep method replaces epsilon by an average of its last values, whose weights w_j add up to 1.
From nu to nu' that is

    x' = alpha' (y + (nu' - nu) sum_j w_j epsilon_j)
       = alpha' D + sigma' epsilon + alpha' (nu' - nu) (sum_j w_j epsilon_j - epsilon):

DDIM's step, and a correction. The first step has one value and no correction, so this also starts
where alpha(T) = 0 and y has no value.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.errors import require
from score_sde.samplers.grids import GridSampler
from score_sde.samplers.stepped import Context
from score_sde.sde import SDE

# Adams and Bashforth's weights for 1 to 4 values at equal distances, the newest first.
ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(GridSampler):
    """Adams and Bashforth's method with the weights of equal steps, on every grid.

    The first steps average over as many values as there are. On a grid of unequal steps, and after
    a first step of order 1, the error is of second order at most. More values make it smaller; they
    do not raise its order.

    Attributes:
        order: values of epsilon that a step averages, 1 to 4; 1 is DDIM.
        num_steps and the others: as of every ``GridSampler``; a step is one evaluation.
    """

    num_steps: int = 20
    order: int = 4
    grid: str = field(default="quadratic", kw_only=True)
    denoised_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.order in (1, 2, 3, 4), "order", self.order, "1, 2, 3, 4")

    def tables(self, sde: SDE, times: Array) -> tuple[Array, ...]:
        """Of the times: alpha and sigma. Of the steps: alpha' (nu' - nu), and the weights (steps,
        order)."""
        sigma, lambdas = sde.sigma(times), 0.5 * sde.log_snr(times)  # nu = e^-lambda
        length = -sigma[1:] * jnp.expm1(jnp.diff(lambdas))
        return sde.alpha(times), sigma, length.at[0].set(0.0), self.weights(sde, times)

    def weights(self, sde: SDE, times: Array) -> Array:
        """Weights of the values of epsilon in each step, the newest first, (steps, order)."""
        del sde  # they know the number of values alone
        back = np.minimum(np.arange(len(times) - 1), self.order - 1)
        return jnp.asarray(np.asarray(ADAMS_BASHFORTH)[back, : self.order], times.dtype)

    def memory(self, x: Array) -> Array:
        """The last values of epsilon, the newest first."""
        return jnp.zeros((self.order, *x.shape), x.dtype)

    def step(self, x: Array, memory: Array, i: Array, c: Context) -> tuple[Array, Array]:
        alpha, sigma, length, weights = c.tables
        x0 = c.denoised(x, i)
        epsilon = (x - alpha[i] * x0) / sigma[i]
        memory = jnp.concatenate([epsilon[None], memory[:-1]])
        average = jnp.tensordot(weights[i], memory, axes=1, precision="highest")
        x = alpha[i + 1] * x0 + sigma[i + 1] * epsilon + length[i] * (average - epsilon)
        return x, memory
