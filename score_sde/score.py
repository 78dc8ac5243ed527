"""From a network to the score: every formulation is three coefficients and a noise condition.

With F the network, every parameterization estimates the noise z of x_t = alpha x0 + sigma z as

    epsilon(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t)),      score = -epsilon / sigma,

which does not cancel at small t, as going through the denoised image would.

A network trained on the N levels of a discrete chain (`SDE.chain`) is told a level in place of a
condition. Three ways lead from a time to its level:

    smooth    the level is a real number and sigma the process's, both continuous in t. Solvers with
              step control and the likelihood need that: a score that jumps between levels makes an
              ODE solver's steps collapse, and the original too leaves the chain's table there.
    original  the table's sigma at the level that the original code picks, to sample as it did.
    matched   the level whose log-SNR in the chain is the process's at t, between two levels a
              number between them. With times that are levels' own (`samplers.grids`) the network
              is evaluated where it was trained, whatever the sampler. (DDPM's chain runs a step
              ahead of the process: by `smooth` its network is told a level too little.)

References:
    Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239 (DDPM's levels).
    Song, Ermon 2019, arXiv:1907.05600 (SMLD's levels).
    Song et al. 2021, arXiv:2011.13456, section 4 and appendix C (epsilon and score).
    Salimans, Ho 2022, Progressive Distillation, arXiv:2202.00512, section 4 (velocity).
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, table 1 (the form of the
    table).
"""

from collections.abc import Callable
from functools import partial
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


def level_score(apply: Callable[..., Array], parameterization: str) -> Callable[..., Array]:
    """The score function of a network whose noise level is given outright.

    Args:
        apply: ``apply(params, x (B, *shape), noise (B,), {"labels": (B,)} | {}, **options) -> (B,
            *shape)``.
        parameterization: a key of ``PARAMETERIZATIONS``.

    Returns:
        ``score(params, x, condition, alpha, sigma, labels=None, **options) -> (B, *shape)`` with
        what the network is told, alpha and sigma each (B,).
    """
    coefficients = PARAMETERIZATIONS[parameterization]

    def score(
        params: Any,
        x: Array,
        condition: Array,
        alpha: Array,
        sigma: Array,
        labels: Array | None = None,
        **options: Any,
    ) -> Array:
        c = coefficients(alpha, sigma)
        conditions = {} if labels is None else {"labels": labels}
        output = apply(params, expand(c.c_in, x) * x, condition, conditions, **options)
        return -(expand(c.c_skip / sigma, x) * x + expand(c.c_out / sigma, x) * output)

    return score


def network_score(
    apply: Callable[..., Array],
    sde: SDE,
    parameterization: str,
    condition: str,
    *,
    num_levels: int = 0,
    levels: str = "smooth",
) -> Callable[..., Array]:
    """The score function of a network.

    Args:
        apply: as for ``level_score``.
        sde: the process that the network is trained under.
        parameterization: a key of ``PARAMETERIZATIONS``.
        condition: a key of ``CONDITIONS``: what the network is told of the noise level. Without
            effect where ``num_levels`` is not 0: then it is told the level.
        num_levels: 0 for a network trained in continuous time, else N of its discrete chain.
        levels: ``smooth``, ``original`` or ``matched``: which level such a network is told at a
            time (see above). Without effect where ``num_levels`` is 0.

    Returns:
        ``score(params, x, t, labels=None, **options) -> (B, *shape)``; ``Partial(score, params)``
        is a ``ScoreFn``.

    Raises:
        ValueError: a process without a discrete chain, where ``num_levels`` is not 0.
    """
    chain = sde.chain(num_levels) if num_levels else None

    def told(t: Array) -> tuple[Array, Array, Array]:
        if chain is None:
            return CONDITIONS[condition](sde, t), sde.alpha(t), sde.sigma(t)
        if levels == "matched":
            log_snr = 2.0 * (jnp.log(chain.alpha) - jnp.log(chain.sigma))
            rising = jnp.argsort(log_snr)
            level = jnp.interp(sde.log_snr(t), log_snr[rising], rising.astype(t.dtype))
            return level, sde.alpha(t), sde.sigma(t)
        level = sde.level(t, num_levels)
        if levels == "smooth":
            return level, sde.alpha(t), sde.sigma(t)
        level, row = sde.snap(level)
        alpha, sigma = (table[row.astype(jnp.int32)].astype(t.dtype) for table in chain)
        return level, alpha, sigma

    score_of = level_score(apply, parameterization)

    def score(
        params: Any, x: Array, t: Array, labels: Array | None = None, **options: Any
    ) -> Array:
        return score_of(params, x, *told(t), labels, **options)

    return score


def as_pytree(score: ScoreFn) -> Partial:
    """A score function that jit takes as an argument: parameters bound by ``Partial`` stay
    leaves."""
    return score if isinstance(score, Partial) else Partial(score)


def of_one_sample(score: Partial) -> tuple[Callable[[dict[str, Any]], ScoreFn], dict[str, Any]]:
    """Split off a score what belongs to single samples, for solves of one sample each.

    What ``Partial`` binds by keyword belongs to the samples of a batch, one after the other along
    the first axis, as class labels (B,) do; what it binds by position is theirs together.

    Returns:
        (given, conditions): the conditions are what is bound by keyword, and for those of one
        sample, without the first axis, ``given(conditions)`` is its score, (x (1, *shape), t (1,))
        -> (1, *shape).
    """

    def given(conditions: dict[str, Any]) -> ScoreFn:
        return partial(score.func, *score.args, **jax.tree.map(lambda a: a[None], conditions))

    return given, score.keywords


def denoise(sde: SDE, score: ScoreFn, x: Array, t: Array) -> Array:
    """Tweedie's formula: E[x0 | x_t] = (x_t + sigma^2 score) / alpha, of shape (B, *shape)."""
    sigma2 = expand(jnp.square(sde.sigma(t)), x)
    return (x + sigma2 * score(x, t)) / expand(sde.alpha(t), x)


def full_precision() -> Any:
    """The context in which likelihoods, solvers and comparisons run: float32 products are TF32 on
    GPUs otherwise."""
    return jax.default_matmul_precision("highest")
