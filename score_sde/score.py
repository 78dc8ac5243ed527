"""From a network to the score: every formulation is three coefficients and a noise condition.

With F the network, every parameterization estimates the noise z of x_t = alpha x0 + sigma z as

    epsilon(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t)),      score = -epsilon / sigma,

which does not cancel at small t, as going through the denoised image would.

References:
    Song et al. 2021, arXiv:2011.13456, section 4 and appendix C (epsilon and score).
    Salimans, Ho 2022, Progressive Distillation, arXiv:2202.00512, section 4 (velocity).
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, table 1 (the form of the
    table).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.sde import SDE, ScoreFn, expand


class Preconditioning(NamedTuple):
    """Coefficients, each (B,), of epsilon = c_skip x + c_out F(c_in x, c_noise)."""

    c_skip: Array
    c_out: Array
    c_in: Array


def _epsilon(alpha: Array, sigma: Array) -> Preconditioning:
    """DDPM, VP and sub-VP of the paper: the network's output is the noise itself."""
    one = jnp.ones_like(sigma)
    return Preconditioning(0.0 * one, one, one)


def _score(alpha: Array, sigma: Array) -> Preconditioning:
    """VE of the paper: the network's output divided by sigma is the score, without a minus sign."""
    one = jnp.ones_like(sigma)
    return Preconditioning(0.0 * one, -one, one)


def _velocity(alpha: Array, sigma: Array) -> Preconditioning:
    """v = (alpha z - sigma x0) / r with r^2 = alpha^2 + sigma^2, so that input and target have unit
    size.

    r = 1 under VP (Salimans, Ho 2022); under VE this is Karras et al. 2022 with sigma_data = 1.
    """
    squared = jnp.square(alpha) + jnp.square(sigma)
    return Preconditioning(sigma / squared, alpha / jnp.sqrt(squared), 1.0 / jnp.sqrt(squared))


PARAMETERIZATIONS: dict[str, Callable[[Array, Array], Preconditioning]] = {
    "epsilon": _epsilon,
    "score": _score,
    "velocity": _velocity,
}

CONDITIONS: dict[str, Callable[[SDE, Array], Array]] = {
    "time": lambda sde, t: 999.0 * t,  # 999 whatever the number of steps, as the original
    "log_sigma": lambda sde, t: jnp.log(sde.sigma(t)),
    "log_snr": lambda sde, t: sde.log_snr(t),
}


def network_score(
    apply: Callable[..., Array], sde: SDE, parameterization: str, condition: str
) -> Callable[..., Array]:
    """The score function of a network.

    Args:
        apply: ``apply(params, x (B, *shape), condition (B,), labels (B,) | None, **options) -> (B,
            *shape)``.
        sde: the process that the network is trained under.
        parameterization: a key of ``PARAMETERIZATIONS``.
        condition: a key of ``CONDITIONS``: what the network is told of the noise level.

    Returns:
        ``score(params, x, t, labels=None, **options) -> (B, *shape)``; ``Partial(score, params)``
        is a ``ScoreFn``.
    """
    coefficients, noise_condition = PARAMETERIZATIONS[parameterization], CONDITIONS[condition]

    def score(
        params: Any, x: Array, t: Array, labels: Array | None = None, **options: Any
    ) -> Array:
        sigma = sde.sigma(t)
        c = coefficients(sde.alpha(t), sigma)
        output = apply(params, expand(c.c_in, x) * x, noise_condition(sde, t), labels, **options)
        return -(expand(c.c_skip / sigma, x) * x + expand(c.c_out / sigma, x) * output)

    return score


def as_pytree(score: ScoreFn) -> Partial:
    """A score function that jit takes as an argument: parameters bound by ``Partial`` stay
    leaves."""
    return score if isinstance(score, Partial) else Partial(score)


def denoise(sde: SDE, score: ScoreFn, x: Array, t: Array) -> Array:
    """Tweedie's formula: E[x0 | x_t] = (x_t + sigma^2 score) / alpha, of shape (B, *shape)."""
    sigma2 = expand(jnp.square(sde.sigma(t)), x)
    return (x + sigma2 * score(x, t)) / expand(sde.alpha(t), x)


def full_precision() -> Any:
    """The context in which likelihoods, solvers and comparisons run: float32 products are TF32 on
    GPUs otherwise."""
    return jax.default_matmul_precision("highest")
