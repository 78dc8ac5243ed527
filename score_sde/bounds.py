"""Variational bounds of -log p: in continuous time, and of a discrete chain.

The process turns x0 into x_t = alpha x0 + sigma z. The model starts from the prior and goes back by
the reverse process, down to the least noise that it knows; there it decodes x0. By Jensen's
inequality over the path (Song et al. 2021b, arXiv:2101.09258, theorem 3; Kingma et al. 2021,
arXiv:2107.00630, eq. 11; Ho et al. 2020, arXiv:2006.11239, eq. 5)

    -log p(x0) <= KL(q(x_T | x0) || prior)                                        prior
                  + 1/2 int E |sigma score + z|^2 d(log SNR)                      diffusion
                  - E log p(x0 | x_t), t the least time                           reconstruction.

**Diffusion.** The integral runs over the log-SNR from T to t_min. So it depends on the schedule by
its two ends only, and times uniform in log-SNR make the weight a constant. Where alpha(T) = 0 the
log-SNR has no least value. With D the denoised data the same integral is

    1/2 int E |D - x0|^2 d SNR = 1/2 int E (1 + SNR) |D - x0|^2 d log(1 + SNR),

and the times are uniform in log(1 + SNR), whose range is finite. Between two levels k - 1
and k of a chain it is the KL divergence between two Gaussians. With e = sigma score + z and r the
variance of q(x_{k-1} | x_k, x0) over the model's it is the sum over the D numbers of

    1/2 (SNR_{k-1} / SNR_k - 1) r e^2 + 1/2 (r - 1 - log r),

whose first term is 1/2 (SNR_{k-1} - SNR_k) r (D - x0)^2, too.

The smaller of DDPM's reverse variances has r = 1, the larger r = sigma_{k-1}^2 / sigma_k^2. A
learned one lies between them, number by number: log r = v log(sigma_{k-1}^2 / sigma_k^2), where the
network says the share v (Nichol, Dhariwal 2021, arXiv:2102.09672, eq. 15). The smaller is right for
data in one point, the larger for a density that is flat on the scale of the noise. So with the
larger one the chain's bound of a density tends to that in continuous time. With the smaller one it
does not: where a chain begins, sigma_k^2 doubles from level to level however many there are. Levels
at times of a process come closer with their number, so there both do.

**Reconstruction.** The decoder is N(denoised, (sigma / alpha)^2 I). Where the model was trained on
pixels as they are, it is integrated over the pixels' bins, of which the first and the last are open
(Ho et al. 2020, section 3.3). There a chain's decoder has the smaller variance of the next level's
step; a learned one lies between that and sigma^2. Otherwise the decoder is a density, of
dequantized data where there are bins.

**The gap.** With the exact score the reverse process has the data's own paths. Then the bound is
-log p(x0) up to its two ends: the prior, which is not quite p_T, and the decoder, which is
not quite p(x0 | x_t). The density is that of the model with its decoder; the flow's
(`score_sde.likelihood`) is another model's, and in theory it may lie above or below for an inexact
score (Song et al. 2021b, section 5).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.discrete import Chain, discretization, levels_of
from score_sde.display import mean, mean_with_error, shown
from score_sde.errors import require
from score_sde.functions import as_pytree, check_arguments, check_density
from score_sde.score import Model, denoise, evaluations, full_precision, require_time
from score_sde.sde import SDE, ScoreFn, expand
from score_sde.spaces import Dequantized, Space, item_keys

VARIANCES = {"large": 1.0, "small": 0.0, "learned": None}
"""The variances of reverse steps, by the share v of the larger; None: as the network says."""


@shown
class Bound(NamedTuple):
    """Bounds of n items, up to the Monte Carlo error of times and noise.

    Attributes:
        bits_per_dim: upper bounds of -log2 P / D, float32 (n,); None for data without bins.
        log_prob: lower bounds of log P, nats, float32 (n,): minus the sum of the next three. For
            data without bins, of the log density in the data's units.
        prior, diffusion, reconstruction: the terms of -log_prob, nats, float32 (n,). The last has
            what dequantization, or the data's units, add.
        time_error: standard error of the diffusion term by K times, nats, float32 (n,), which is an
            upper estimate as the times are evenly spread. None for one time, and for a chain.
        nfe: evaluations of the network for each item, int32 (n,).
        steps: of a chain, the terms of the diffusion for the levels 1 ... N - 1, from the least
            noise on, nats, float32 (n, N - 1). None in continuous time.
    """

    bits_per_dim: Array | None
    log_prob: Array
    prior: Array
    diffusion: Array
    reconstruction: Array
    time_error: Array | None
    nfe: Array
    steps: Array | None

    @property
    def figure(self) -> tuple[Array, str]:
        """A number for each item, (n,), and its unit: bits/dim, or nats of the log density of data
        without bins."""
        if self.bits_per_dim is None:
            return self.log_prob, "nats"
        return self.bits_per_dim, "bits/dim"

    def _facts(self) -> dict[str, str]:
        values, unit = self.figure
        name = "bits/dim, at most" if unit == "bits/dim" else "log density, nats, at least"
        return {name: mean_with_error(values), "items": f"{len(values)}", "NFE": mean(self.nfe)}


def likelihood_bound(
    key: Array,
    sde: SDE,
    score: ScoreFn,
    data: Array,
    space: Space | None = None,
    *,
    num_times: int = 100,
    t_min: float = 1e-5,
    first: int = 0,
) -> Bound:
    """Bound -log p in continuous time, by K times and noises for each item.

    Runs at ``highest`` matrix precision. An item's draws depend on ``key`` and its index.

    Args:
        key: a jax key.
        sde: the process.
        score: (x (B, *shape), t (B,)) -> (B, *shape), evaluated on all items at once. Where
            alpha(T) = 0 its method `denoised` is read. Without one alpha divides.
        data: items of the space, (B, *shape).
        space: how the model sees them; None for points in the model's units.
        num_times: K. The times of an item are evenly spread from a random start: in log-SNR, or
            in log(1 + SNR) where alpha(T) = 0.
        t_min: the least time, at which the decoder takes over.
        first: index of the first item, for data that come in parts.

    Raises:
        ValueError: K below 1, a time that the process has not, a chain's network at alpha(T) = 0, a
            score of other arguments, or one that belongs to no density, such as a guided one.
    """
    require(num_times > 0, "num_times", num_times, "integers of at least 1")
    require_time(t_min, sde)
    check_arguments("score", score, "x, t")
    check_density(score)
    if isinstance(score, Model) and score.num_levels:
        sde.check()  # a chain's levels end before alpha is 0
    keeps = sde.keeps_data()
    return _in_time(key, sde, as_pytree(score), data, space, num_times, keeps, t_min, first)


def chain_bound(
    key: Array,
    model: Model,
    data: Array,
    space: Space | None = None,
    *,
    variance: str = "large",
    num_times: int = 100,
    t_min: float = 1e-5,
    first: int = 0,
) -> Bound:
    """Bound -log p on the levels of a chain, each evaluated with one noise: L_vlb of DDPM (Ho et
    al. 2020, eq. 5; Nichol, Dhariwal 2021, arXiv:2102.09672).

    Of a model that was trained in continuous time the levels are those of K times from t_min to T,
    evenly spread: the loss of a finite number of steps of Kingma et al. 2021, by the smaller
    variance. The published codes clip the denoised data to the pixels' range, and a pixel's
    probability at 1e-12; here neither is clipped.

    Args:
        key: a jax key.
        model: the network, with its condition; `num_levels` is N.
        data: items of the space, (B, *shape).
        space: how the model sees them; None for points in the model's units.
        variance: of the reverse steps, one of ``VARIANCES`` (see the module's docstring).
        num_times: K, of a model without a chain; t_min: the least of its times.
        first: index of the first item, for data that come in parts.

    Raises:
        ValueError: another variance, or one that the model has not learned; fewer than two levels;
            without a chain also a time that the process has not.
    """
    known = [name for name in VARIANCES if VARIANCES[name] is not None or model.learned_variance]
    require(variance in known, "variance", variance, ", ".join(known))
    if model.num_levels:
        require(model.num_levels > 1, "num_levels", model.num_levels, "integers of at least 2")
    else:
        require(num_times > 1, "num_times", num_times, "integers of at least 2")
        require_time(t_min, model.sde)
    keeps = bool(model.num_levels) or model.sde.keeps_data()
    return _by_level(key, model, data, space, variance, num_times, keeps, t_min, first)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _in_time(
    key: Array,
    sde: SDE,
    score: Any,
    data: Array,
    space: Space | None,
    num_times: int,
    keeps_data: bool,
    t_min: Array,
    first: Array,
) -> Bound:
    key_t, items = jax.random.fold_in(key, 1), _Items(key, data, space, first)
    x0, ones = items.x0, jnp.ones(len(data), items.x0.dtype)
    ends = t_min * ones, sde.T * ones
    top, bottom = map(sde.log_snr, ends)
    draw = partial(jax.random.uniform, dtype=jnp.float32)
    begin = jax.vmap(draw)(item_keys(key_t, len(data), first)).astype(x0.dtype)

    def at(k: Array) -> tuple[Array, Array, Array]:
        u = jnp.mod(begin + (k / num_times).astype(x0.dtype), 1.0)
        log_snr, weight = at_share(u)
        t = jnp.clip(sde.inverse_log_snr(log_snr), *ends)
        t = jnp.where(k < num_times, t, ends[0])  # last, the decoder's
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x, z = items.noisy(k, alpha, sigma)
        nu = sigma / alpha
        if keeps_data:
            error = expand(sigma, x) * score(x, t) + z
            value = weight * _sum(jnp.square(error))
        else:
            off = denoise(sde, score, x, t) - x0
            error, value = off / expand(nu, x), weight * _sum(jnp.square(off))
        calls = jnp.asarray(evaluations(score, t), jnp.int32)
        return value, items.decoded(error, z, nu, expand(nu, x)), calls

    def at_share(u: Array) -> tuple[Array, Array]:
        """The log-SNR at this share of the integral's range, and the weight of the square there."""
        if keeps_data:
            return top + u * (bottom - top), 0.5 * (top - bottom)
        most = jnp.logaddexp(top, 0.0)
        height = jnp.maximum(u * most, jnp.finfo(u.dtype).tiny)  # log(1 + SNR)
        return jnp.log(jnp.expm1(height)), 0.5 * most * jnp.exp(height)

    with full_precision():
        values, decoded, calls = jax.lax.map(at, jnp.arange(num_times + 1))
    values = values[:-1]
    spread = jnp.std(values, axis=0, ddof=1) / math.sqrt(num_times) if num_times > 1 else None
    prior = _prior(x0, sde.alpha(ends[1]), sde.sigma(ends[1]), sde.prior_std())
    return items.bound(prior, jnp.mean(values, axis=0), decoded[-1], jnp.sum(calls), spread)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _by_level(
    key: Array,
    model: Model,
    data: Array,
    space: Space | None,
    variance: str,
    num_times: int,
    keeps_data: bool,
    t_min: Array,
    first: Array,
) -> Bound:
    if model.num_levels:
        chain = discretization(model.sde).chain(model.num_levels)
        noises = model.at_level(jnp.arange(model.num_levels))
    else:
        times = model.sde.time_steps(t_min, model.sde.T, num_times)
        chain = Chain(model.sde.alpha(times), model.sde.sigma(times))
        noises = model.noise(times)
    items = _Items(key, data, space, first)
    x0, ones = items.x0, jnp.ones(len(data), items.x0.dtype)
    levels, fixed = levels_of(chain, x0.dtype), VARIANCES[variance]
    snr = jnp.square(levels.alpha / levels.sigma)
    falls = jnp.concatenate([jnp.zeros_like(snr[:1]), snr[:-1] - snr[1:]])

    def at(k: Array) -> tuple[Array, Array]:
        noise = jax.tree.map(lambda table: jnp.full(len(data), table[levels.order[k]]), noises)
        alpha, sigma, growth, log_ratio = (table[k] * ones for table in levels[1:])
        x, z = items.noisy(k, alpha, sigma)
        nu = sigma / alpha
        if not keeps_data:
            assert fixed is not None  # learned variances are a chain's, whose levels keep data
            off, share = model.denoised_at(x, noise) - x0, jnp.full_like(x, fixed)
            std = decoder_std(sigma, log_ratio, jnp.zeros_like(x))
            decoded = items.decoded(off / expand(nu, x), z, nu, std)
            return step_kl(falls[k] * ones, log_ratio, off, share), decoded
        if fixed is None:
            score, share = model.score_and_share_at(x, noise)
            std = decoder_std(sigma, log_ratio, share)
        else:
            score, share = model.score_at(x, noise), jnp.full_like(x, fixed)
            std = decoder_std(sigma, log_ratio, jnp.zeros_like(x))
        error = expand(sigma, x) * score + z
        return step_kl(growth, log_ratio, error, share), items.decoded(error, z, nu, std)

    with full_precision():
        steps, decoded = jax.lax.map(at, jnp.arange(len(levels.order)))
    alpha, sigma = levels.alpha[-1] * ones, levels.sigma[-1] * ones
    prior, steps = _prior(x0, alpha, sigma, model.sde.prior_std()), steps[1:]
    number, by_item = len(levels.order), jnp.swapaxes(steps, 0, 1)
    return items.bound(prior, jnp.sum(steps, axis=0), decoded[0], number, steps=by_item)


def step_kl(growth: Array, log_ratio: Array, error: Array, share: Array) -> Array:
    """KL divergence of the model's step from a level k from q(x_{k-1} | x_k, x0), nats, (B,).

    Args:
        growth: SNR_{k-1} / SNR_k - 1, (B,); SNR_{k-1} - SNR_k for an error of the denoised data.
        log_ratio: log(sigma_{k-1}^2 / sigma_k^2), (B,).
        error: sigma score + z at level k, or denoised - x0, (B, *shape).
        share: v of each number, (B, *shape): 0 is the smaller variance, 1 the larger.
    """
    log_r = expand(log_ratio, error) * share
    by_means = expand(growth, error) * jnp.exp(log_r) * jnp.square(error)
    return 0.5 * _sum(by_means + jnp.expm1(log_r) - log_r)


def decoder_std(sigma: Array, log_ratio: Array, share: Array) -> Array:
    """The standard deviation of a chain's decoder of bins, (B, *shape): sigma and the log ratio are
    those of the first level, (B,), the share of sigma^2 (B, *shape)."""
    return expand(sigma, share) * jnp.exp(0.5 * (1.0 - share) * expand(log_ratio, share))


def is_decoded(space: Space | None) -> bool:
    """Whether the decoder gives probabilities of bins, not a density."""
    return space is not None and space.has_bins and not space.dequantize


def decoder_loss(
    space: Space | None, data: Array, x0: Array, error: Array, z: Array, nu: Array, std: Array
) -> Array:
    """Minus the logarithm of the decoder, nats, (B,).

    Args:
        space: as of the bounds.
        data: items of the space, (B, *shape).
        x0: in the model's units, (B, *shape).
        error: sigma score + z at the least noise, (B, *shape); z: the noise, (B, *shape).
        nu: sigma / alpha there, (B,): the standard deviation of a density.
        std: that of the decoder of bins, (B, 1, ...) or (B, *shape).
    """
    if is_decoded(space):
        assert space is not None
        return -space.log_decoded(data, x0 + expand(nu, x0) * error, std)
    # E|z|^2 = D takes the place of |z|^2: the error is next to z here, so the noise cancels.
    dims = x0[0].size
    excess = 0.5 * (_sum(jnp.square(error)) - _sum(jnp.square(z)) + dims)
    return dims * (0.5 * math.log(2.0 * math.pi) + jnp.log(nu)) + excess


class _Items:
    """The items of a batch with their noise. Made and used within a jitted function.

    Attributes:
        x0: in the model's units, (B, *shape).
    """

    def __init__(self, key: Array, data: Array, space: Space | None, first: Array) -> None:
        self.data, self.space = data, space
        self.noise_key, self.first = jax.random.fold_in(key, 2), first
        keys = item_keys(jax.random.fold_in(key, 0), len(data), first)
        nothing = jnp.zeros(len(data), jnp.float32)
        if space is None:
            found = Dequantized(data, nothing.astype(data.dtype))
        elif is_decoded(space):
            found = Dequantized(space.to_model(data), nothing)
        else:  # alpha and sigma are for another kind of dequantization
            found = space.dequantized(keys, data, "uniform", 1.0, 0.0)
        self.x0, self._log_density = found

    def noisy(self, k: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        """The items at a noise level, and their noise, each (B, *shape)."""
        x0 = self.x0
        keys = item_keys(jax.random.fold_in(self.noise_key, k), len(x0), self.first)
        z = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(keys)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * z, z

    def decoded(self, error: Array, z: Array, nu: Array, std: Array) -> Array:
        """Minus the decoder's logarithm at this noise, (B,)."""
        return decoder_loss(self.space, self.data, self.x0, error, z, nu, std)

    def bound(
        self,
        prior: Array,
        diffusion: Array,
        decoded: Array,
        nfe: int | Array,
        time_error: Array | None = None,
        steps: Array | None = None,
    ) -> Bound:
        """The bound of its three terms."""
        reconstruction = decoded + self._log_density
        log_prob = -(prior + diffusion + reconstruction)
        bits = self.space.figure(log_prob) if self.space and self.space.has_bins else None
        terms = prior, diffusion, reconstruction
        evaluations = jnp.full(len(log_prob), nfe, jnp.int32)
        return Bound(bits, log_prob, *terms, time_error, evaluations, steps)


def _prior(x0: Array, alpha: Array, sigma: Array, std: Array | float) -> Array:
    """KL(N(alpha x0, sigma^2 I) || N(0, std^2 I)), nats, (B,)."""
    dims, ratio = x0[0].size, jnp.square(sigma / std)
    mean2 = jnp.square(alpha / std) * _sum(jnp.square(x0))
    return 0.5 * (mean2 + dims * (ratio - 1.0 - jnp.log(ratio)))


def _sum(values: Array) -> Array:
    return jnp.sum(values.reshape(len(values), -1), axis=1)
