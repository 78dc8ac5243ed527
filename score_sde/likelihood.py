"""Log-likelihoods by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

log p_0(x_0) = log p_T(x_T) + int_0^T div f(x_t, t) dt along dx = f(x, t) dt, the probability flow.
Value and divergence come out of one forward-mode pass: jax.jvp(f)(eps) returns f and J eps
together, and eps . J eps is Hutchinson's unbiased estimate of the trace (Hutchinson 1990; Grathwohl
et al. 2019, arXiv:1810.01367, eq. 7). The probe is drawn once and held through the solve.

The log density of a continuous point (`log_likelihood`) is exact up to the solver's tolerance and
the probes' error, which averages out. The log probability of discrete data (`data_log_likelihood`)
is a lower bound, and bits/dim is an upper bound, up to the same two errors. The gap of the bound is
that of the dequantization (`score_sde.spaces`). More draws make it smaller.

The prior differs slightly from p_T. With m the mean of the data, the error of log p varies from
point to point as a normal deviate of standard deviation alpha(T) |m| / sigma(T), around half the
square of that. At the paper's constants the deviation is 0.0066 |m| (VP, sub-VP) or 0.02 |m| (VE).
Even for a large mean, |m| = sqrt(dims), this is below 1e-2 nats/dim from 16 dims on.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from score_sde.display import mean, mean_with_error, shown
from score_sde.errors import require
from score_sde.functions import as_pytree, check_arguments, check_density
from score_sde.integrate import MAX_STEPS, check, integrate
from score_sde.score import evaluations, full_precision, require_time
from score_sde.sde import SDE, ScoreFn
from score_sde.spaces import Dequantized, Space, item_keys

DIVERGENCES = ("rademacher", "gaussian", "exact")


@shown
class Likelihood(NamedTuple):
    """Log-likelihoods of B points, exact up to solver and probes.

    Attributes:
        log_prob: log p(x0) in nats, (B,).
        latent: x_T at the end of the flow, (B, *shape).
        nfe: evaluations of the networks (each with its divergence), (B,) int32.
        by_probe: log p(x0) by each probe alone, (B, probes), whose mean is `log_prob`; one column
            with the exact divergence.
    """

    log_prob: Array
    latent: Array
    nfe: Array
    by_probe: Array

    @property
    def figure(self) -> tuple[Array, str]:
        """A number for each point, (B,), and its unit."""
        return self.log_prob, "nats"

    def _facts(self) -> dict[str, str]:
        return _facts_of(self)


@shown
class DataLikelihood(NamedTuple):
    """Likelihoods of n items of D numbers each, by K dequantizations (one where there are no bins).

    Attributes:
        bits_per_dim: upper bounds of -log2 P / D, float32 (n,); None for data without bins, which
            have a density only.
        log_prob: log density of each dequantized item at t_min in the model's units, exact up to
            solver and probes, nats, float32 (n, K).
        log_weight: log p(x_k) - log q(x_k), nats, float32 (n, K). Each bounds log P in expectation;
            so does the logarithm of the mean of the exponentials of several. For data without bins,
            the log density in the data's units.
        nfe: evaluations of the score for each item, over all its K solves, int32 (n,).
        probe_error: standard error over the probes, float32 (n,): of bits_per_dim, or of the log
            density of data without bins. None for a single probe and for the exact divergence.
    """

    bits_per_dim: Array | None
    log_prob: Array
    log_weight: Array
    nfe: Array
    probe_error: Array | None

    @property
    def figure(self) -> tuple[Array, str]:
        """A number for each item, (n,), and its unit: bits/dim, or nats of the log density of data
        without bins."""
        if self.bits_per_dim is None:
            return self.log_weight.mean(axis=1), "nats"
        return self.bits_per_dim, "bits/dim"

    def _facts(self) -> dict[str, str]:
        return _facts_of(self)


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
    max_steps: int = MAX_STEPS,
) -> Likelihood:
    """Log density of continuous data at t_min under the model, one adaptive solve for each point.

    Runs at ``highest`` matrix precision. A point has its own step sizes, and its probes are drawn
    from ``key`` and its index: its result does not depend on its batch-mates. It depends by
    rounding on the batch's size, which near t = 0 may change a step (benchmarks/README.md).

    Args:
        key: a jax key.
        sde: the process.
        score: (x (B, *shape), t (B,)) -> (B, *shape), evaluated on all points at once. It may hold
            arrays with a row for each, such as labels (B,): the density is that given the labels.
        x0: points (B, *shape), float, in the model's range; images dequantized.
        divergence: ``rademacher`` or ``gaussian`` probes, or ``exact``: as many tangents as x has
            elements.
        num_probes: probes that the estimate is averaged over.
        rtol, atol: tolerances of the solver, for x and for log p / dims by each probe.
        t_min: the time at which the data are taken to lie.
        terminal_log_prob: log density at T, (x, t) -> (B,); the process's prior by default (see the
            module's docstring).
        first: index of the first point, for data that come in parts.
        probes: probes (B, number, *shape) in place of drawn ones, to compare with another code.
        max_steps: after so many steps a solve fails.

    Raises:
        ValueError: for an unknown divergence, no probes, a time that the process has not, a score
            of other arguments, or one that belongs to no density, such as a guided one.
        RuntimeError: with the solver's reason, if a solve did not succeed.
    """
    require(divergence in DIVERGENCES, "divergence", divergence, ", ".join(DIVERGENCES))
    require(num_probes > 0, "num_probes", num_probes, "integers of at least 1")
    require_time(t_min, sde)
    check_arguments("score", score, "x, t")
    sde.check_flow(score)
    check_density(score)
    terminal = Partial(_prior, sde) if terminal_log_prob is None else as_pytree(terminal_log_prob)
    times, tolerances, fixed = (t_min, sde.T), (rtol, atol), (divergence == "exact", max_steps)
    if probes is None:
        probes = _probes(key, x0, divergence, num_probes, first)
    likelihood, verdict = _solve(
        probes, sde, as_pytree(score), x0, times, tolerances, terminal, fixed
    )
    check(verdict, max_steps)
    return likelihood


def data_log_likelihood(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    data: Array,
    space: Space,
    *,
    dequantization: str = "uniform",
    num_importance: int = 1,
    t_min: float = 1e-5,
    first: int = 0,
    **settings: Any,
) -> DataLikelihood:
    """Bound the log probability of discrete data from below by dequantization; for data without
    bins, compute the log density in their units.

    With K draws x_k from q(x | v) the importance-weighted bound (Burda et al. 2016,
    arXiv:1509.00519, eq. 8) is log P(v) >= E[log 1/K sum_k p(x_k) / q(x_k | v)]. It tightens in K
    and tends to log P(v). The draws of an item share their probes. So most of the probes' error is
    common to all weights, and averages out as with K = 1. The rest of it lies inside the logarithm:
    for K > 1 it raises the bound by at most half its variance in nats. The exact divergence has no
    such error.

    The density is that at t_min. Uniform dequantization evaluates it at the dequantized item
    itself, as published; truncated normal dequantization adds the noise of t_min.

    Args:
        key: a jax key. An item's draws and probes depend on the key and its index. A larger K keeps
            the draws of a smaller one.
        sde: the process.
        score: the score function, as for `log_likelihood`.
        data: items of the space, (B, *shape).
        space: how the model sees them.
        dequantization: ``uniform`` or ``truncated_normal``, see `score_sde.spaces`.
        num_importance: K. Each draw costs a solve.
        t_min: the time at which the data are taken to lie.
        first: index of the first item, for data that come in parts.
        settings: the others of `log_likelihood`.

    Raises:
        ValueError: for an unknown dequantization or divergence, or K below 1.
        RuntimeError: with the reason, if a solve did not succeed.
    """
    require(num_importance > 0, "num_importance", num_importance, "integers of at least 1")
    key_data, key_probes = jax.random.split(key)
    draws, likelihoods = [], []
    for k in range(num_importance):
        draw = _dequantize(key_data, sde, data, t_min, first, k, space, dequantization)
        draws.append(draw.log_density)
        likelihoods.append(
            log_likelihood(key_probes, sde, score, draw.x, t_min=t_min, first=first, **settings)
        )
    return _bound(draws, likelihoods, space)


@partial(jax.jit, static_argnums=(6, 7))
def _dequantize(
    key: Array, sde: SDE, data: Array, t: Array, first: Array, k: Array, space: Space, method: str
) -> Dequantized:
    """The k-th draw of each item: the first by the item's key, the others by keys of that."""
    keys = item_keys(key, len(data), first)
    keys = jnp.where(k == 0, keys, jax.vmap(lambda key: jax.random.fold_in(key, k))(keys))
    time = jnp.full(1, t, jnp.float32)
    alpha, sigma = sde.alpha(time)[0], sde.sigma(time)[0]
    return space.dequantized(keys, data, method, alpha, sigma)


@partial(jax.jit, static_argnums=2)
def _bound(draws: list[Array], likelihoods: list[Likelihood], space: Space) -> DataLikelihood:
    log_prob = jnp.stack([each.log_prob for each in likelihoods], axis=1)
    log_weight = log_prob - jnp.stack(draws, axis=1)
    bound = jax.nn.logsumexp(log_weight, axis=1) - math.log(len(draws))
    by_probe = jnp.stack([each.by_probe for each in likelihoods], axis=1)
    return DataLikelihood(
        space.figure(bound) if space.has_bins else None,
        log_prob,
        log_weight,
        jnp.sum(jnp.stack([each.nfe for each in likelihoods]), axis=0),
        _probe_error(by_probe, log_weight, space),
    )


def _probe_error(by_probe: Array, log_weight: Array, space: Space) -> Array | None:
    """Standard error of the figure over the probes, (B,), from (B, K, probes) and (B, K)."""
    number = by_probe.shape[-1]
    if number == 1:
        return None
    # The bound moves with each log p by the weight's share, the softmax, to first order.
    shares = jax.nn.softmax(log_weight, axis=1)[:, :, None]
    bounds = space.figure(jnp.sum(shares * by_probe, axis=1))
    return jnp.std(bounds, axis=1, ddof=1) / math.sqrt(number)


def _facts_of(found: Likelihood | DataLikelihood) -> dict[str, str]:
    values, unit = found.figure
    name = "bits/dim, at most" if unit == "bits/dim" else "log density, nats"
    return {name: mean_with_error(values), "items": f"{len(values)}", "NFE": mean(found.nfe)}


def _prior(sde: SDE, x: Array, t: Array) -> Array:
    return sde.prior_log_prob(x)


@partial(jax.jit, static_argnums=7)
def _solve(
    probes: Array,
    sde: SDE,
    score: Any,
    x0: Array,
    times: tuple[Array, Array],
    tolerances: tuple[Array, Array],
    terminal: Any,
    fixed: tuple[bool, int],
) -> tuple[Likelihood, Array]:
    """The solve of x and of a column of log p / dims for each probe. What is fixed: whether the
    divergence is exact, and the most steps."""
    (first, last), (rtol, atol), (exact, max_steps) = times, tolerances, fixed
    dims, axes = x0[0].size, tuple(range(1, x0.ndim))
    flow = sde.probability_flow(score)

    def field(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def pushforward(probe: Array) -> tuple[Array, Array]:
            value, tangent = jax.jvp(lambda x: flow(x, t), (state[0],), (probe,))
            return value, jnp.sum(probe * tangent, axis=axes)

        # The value does not depend on the probe: vmap evaluates it once, on the whole batch.
        value, traces = jax.vmap(pushforward, in_axes=1, out_axes=(None, 1))(probes)
        return value, (jnp.sum(traces, axis=1, keepdims=True) if exact else traces) / dims

    with full_precision():
        # The error of the columns counts by its root mean square. This is never below the error of
        # their mean, so log p keeps the tolerance that it has with one probe.
        start = (x0, jnp.zeros((len(x0), 1 if exact else probes.shape[1]), x0.dtype))
        solution = integrate(
            field, start, start=first, end=last, rtol=rtol, atol=atol, max_steps=max_steps
        )
        latent, change = solution.y
        end = terminal(latent, jnp.full(len(x0), last, x0.dtype)).astype(x0.dtype)
        by_probe = end[:, None] + dims * change
        log_prob = jnp.mean(by_probe, axis=1)
        nfe = solution.nfe * evaluations(score, jnp.full(len(x0), first, x0.dtype))
    return Likelihood(log_prob, latent, nfe, by_probe), solution.verdict


@partial(jax.jit, static_argnums=(2, 3))
def _probes(key: Array, x0: Array, divergence: str, num_probes: int, first: Array) -> Array:
    """Tangents (B, probes, *shape)."""
    if divergence == "exact":
        basis = jnp.eye(x0[0].size, dtype=x0.dtype).reshape((-1, *x0.shape[1:]))
        return jnp.broadcast_to(basis[None], (len(x0), *basis.shape))
    draw = jax.random.rademacher if divergence == "rademacher" else jax.random.normal
    keys = item_keys(key, len(x0), first)
    return jax.vmap(lambda key: draw(key, (num_probes, *x0.shape[1:]), x0.dtype))(keys)
