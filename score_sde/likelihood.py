"""Exact log-likelihoods by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix
D.2).

log p_0(x_0) = log p_T(x_T) + int_0^T div f(x_t, t) dt along dx = f(x, t) dt, the probability flow.
Value and divergence come out of one forward-mode pass: jax.jvp(f)(eps) returns f and J eps
together, and eps . J eps is Hutchinson's unbiased estimate of the trace (Hutchinson 1990; Grathwohl
et al. 2019, arXiv:1810.01367, eq. 7). The probe is drawn once and held through the solve. The
result is exact up to solver and probe.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.integrate import check, integrate
from score_sde.score import as_pytree, full_precision, of_one_sample
from score_sde.sde import SDE, ScoreFn

DIVERGENCES = ("rademacher", "gaussian", "exact")


class Likelihood(NamedTuple):
    """Log-likelihoods of B points.

    Attributes:
        log_prob: log p(x0) in nats, (B,).
        latent: x_T at the end of the flow, (B, *shape).
        nfe: evaluations of the score (each with its divergence), (B,) int32.
    """

    log_prob: Array
    latent: Array
    nfe: Array


def log_likelihood(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    x0: Array,
    *,
    divergence: str = "rademacher",
    num_probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float = 1e-5,
    terminal_log_prob: ScoreFn | None = None,
    first: int = 0,
    probes: Array | None = None,
) -> Likelihood:
    """Log density of continuous data at t_min under the model, one adaptive solve for each point.

    Runs at ``highest`` matrix precision. The result of a point does not depend on its batch-mates:
    probes are drawn from ``key`` and the index of the point.

    Args:
        key: a jax key.
        sde: the process.
        score: the score function, (x (B, *shape), t (B,)) -> (B, *shape). What a ``Partial`` binds
            by keyword, such as labels (B,), belongs to the points: the density is that given it.
        x0: points (B, *shape), float, in the model's range; images dequantized.
        divergence: ``rademacher`` or ``gaussian`` probes, or ``exact``: as many tangents as x has
            elements.
        num_probes: probes that the estimate is averaged over.
        rtol: relative tolerance of the solver, for x and for log p / dims.
        atol: absolute tolerance, likewise.
        t_min: the time at which the data are taken to lie.
        terminal_log_prob: log density at T, (x, t) -> (B,); the process's prior by default.
        first: index of the first point, for data that come in parts.
        probes: probes (B, number, *shape) to estimate the divergence with, instead of drawn ones,
            as another code's.

    Raises:
        ValueError: for an unknown divergence.
        RuntimeError: with the solver's reason, if a solve did not succeed.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence = {divergence!r}: allowed are {', '.join(DIVERGENCES)}")
    sde.check()
    terminal = Partial(_prior, sde) if terminal_log_prob is None else as_pytree(terminal_log_prob)
    times, tolerances = (t_min, sde.T), (rtol, atol)
    if probes is None:
        probes = _probes(key, x0, divergence, num_probes, first)
    likelihood, result = _solve(
        probes, sde, as_pytree(score), x0, times, tolerances, terminal, divergence == "exact"
    )
    check(result)
    return likelihood


def _prior(sde: SDE, x: Array, t: Array) -> Array:
    return sde.prior_log_prob(x)


@partial(jax.jit, static_argnums=7)
def _solve(
    probes: Array,
    sde: SDE,
    score: Partial,
    x0: Array,
    times: tuple[Array, Array],
    tolerances: tuple[Array, Array],
    terminal: Partial,
    exact: bool,
) -> tuple[Likelihood, Any]:
    dims = x0[0].size
    given, conditions = of_one_sample(score)

    def field(
        t: Array, state: tuple[Array, Array], args: tuple[Array, dict[str, Any]]
    ) -> tuple[Array, Array]:
        probes, conditions = args
        flow = sde.probability_flow(given(conditions))

        def drift(x: Array) -> Array:
            return flow(x[None], t[None])[0]

        def pushforward(probe: Array) -> tuple[Array, Array]:
            value, tangent = jax.jvp(drift, (state[0],), (probe,))
            return value, jnp.sum(probe * tangent)

        # With the value unbatched, vmap evaluates it once for all probes.
        value, traces = jax.vmap(pushforward, out_axes=(None, 0))(probes)
        return value, (jnp.sum(traces) if exact else jnp.mean(traces)) / dims

    with full_precision():
        start = (x0, jnp.zeros(len(x0), x0.dtype))
        solution = integrate(
            field,
            start,
            (probes, conditions),
            start=times[0],
            end=times[1],
            rtol=tolerances[0],
            atol=tolerances[1],
        )
        latent, change = solution.y
        log_prob = terminal(latent, jnp.full(len(x0), times[1], x0.dtype)) + dims * change
    return Likelihood(log_prob, latent, solution.nfe), solution.result


@partial(jax.jit, static_argnums=(2, 3))
def _probes(key: Array, x0: Array, divergence: str, num_probes: int, first: Array) -> Array:
    """Tangents (B, probes, *shape)."""
    if divergence == "exact":
        basis = jnp.eye(x0[0].size, dtype=x0.dtype).reshape((-1, *x0.shape[1:]))
        return jnp.broadcast_to(basis[None], (len(x0), *basis.shape))
    draw = jax.random.rademacher if divergence == "rademacher" else jax.random.normal
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(len(x0)))
    return jax.vmap(lambda key: draw(key, (num_probes, *x0.shape[1:]), x0.dtype))(keys)
