"""DEIS, the exponential integrator tAB (Zhang and Chen 2022, arXiv:2204.13902, section 3).

iPNDM's step with other weights: the polynomial in t through the last values of epsilon is
integrated exactly over dnu. With lambda = -log nu, dnu = -e^-lambda dlambda and Lagrange's
polynomials L_j in t,

    w_j = int L_j(t(lambda)) e^-lambda dlambda / int e^-lambda dlambda    over the step,

by Gauss and Legendre's rule in lambda, in which t is smooth under every process. The same factor
e^-lambda is above and below, so that it may be scaled to at most 1 and the weights add up to 1.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.samplers.ipndm import IPNDM
from score_sde.sde import SDE

# For the longest steps, of 6 in lambda, the rule is off by some 1e-7: t(lambda) of VP has its
# nearest singularities at a distance of pi / 2 from the real axis.
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class DEIS(IPNDM):
    """The paper's tAB-(order - 1), on its grid.

    Attributes:
        order: values of epsilon that the polynomial goes through, 1 to 4; 1 is DDIM. The first
            steps have fewer.
        num_steps and the others: as of every ``GridSampler``; a step is one evaluation.
    """

    def weights(self, sde: SDE, times: Array) -> Array:
        lambdas = 0.5 * sde.log_snr(times)
        shares = 0.5 * (1.0 + jnp.asarray(NODES, times.dtype))[None]
        inner = lambdas[:-1, None] + jnp.diff(lambdas)[:, None] * shares  # (steps, nodes)
        t = sde.inverse_log_snr(2.0 * inner.ravel()).reshape(inner.shape)
        mass = jnp.asarray(NODE_WEIGHTS, times.dtype)[None] * jnp.exp(lambdas[:-1, None] - inner)
        mass = mass / mass.sum(1, keepdims=True)
        steps = jnp.arange(len(times) - 1)
        columns = []
        for j in range(self.order):
            values = jnp.ones_like(t)
            for other in range(self.order):
                if other != j:
                    # Where there is no such value, neither its polynomial nor its factor is taken.
                    a, b = times[steps - j][:, None], times[steps - other][:, None]
                    known = (steps >= max(j, other))[:, None]
                    factor = (t - b) / jnp.where(known, a - b, 1.0)
                    values = values * jnp.where((steps >= other)[:, None], factor, 1.0)
            columns.append(jnp.where(steps >= j, jnp.sum(mass * values, axis=1), 0.0))
        return jnp.stack(columns, axis=1)
