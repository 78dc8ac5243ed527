"""Learned reverse variances (improved DDPM): losses, their history and the sampler, against exact
Gaussians."""

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from score_sde import variances
from score_sde.bounds import chain_bound, step_kl
from score_sde.discrete import discretization, levels_of
from score_sde.samplers import PredictorCorrector
from score_sde.schedules import Cosine
from score_sde.score import Model
from score_sde.spaces import Pixels
from score_sde.variances import KEPT, History, drawn, hybrid_loss, no_history, vlb_loss
from tests.cases import run_with, thorough

LEVELS = 20
SDE = Cosine()
CHAIN = discretization(SDE).chain(LEVELS)
ALPHA, SIGMA = (np.asarray(table, np.float64) for table in CHAIN)  # the least noise first
# Of the data N(MEAN, SPREAD): a point, a wide and a narrow column, and one of unit variance.
MEAN = np.asarray([0.5, -0.3, 0.2, 1.0])
SPREAD = np.asarray([0.0, 0.5, 0.01, 1.0])


def both_variances():
    """beta~ and beta of the steps from the levels 1 ..., float64 (N - 1, 1)."""
    beta = 1 - np.square(ALPHA[1:] / ALPHA[:-1])
    return (beta * np.square(SIGMA[:-1] / SIGMA[1:]))[:, None], beta[:, None]


def best_variances():
    """Var(x_{k-1} | x_k), float64 (N - 1, D): beta~ and what the data's variance given x_k adds."""
    small, beta = both_variances()
    alpha2, sigma2 = np.square(ALPHA[1:])[:, None], np.square(SIGMA[1:])[:, None]
    given = SPREAD * sigma2 / (alpha2 * SPREAD + sigma2)
    return small + np.square(ALPHA[:-1, None] * beta / sigma2) * given


def best_shares():
    """The shares of beta in their logarithms, (N, D); of no use at the first level: 1/2."""
    small, beta = both_variances()
    shares = np.log(best_variances() / small) / np.log(beta / small)
    return np.concatenate([np.full((1, len(MEAN)), 0.5), shares])


def network(params, x, level, condition, **options):
    """The exact noise of the data at a level of the chain, and the shares in the params (N, D)."""
    row = jnp.rint(level).astype(jnp.int32)
    alpha, sigma = (table[row][:, None] for table in CHAIN)
    mean, spread = (jnp.asarray(each, jnp.float32)[None] for each in (MEAN, SPREAD))
    total = jnp.square(alpha) * spread + jnp.square(sigma)
    return jnp.concatenate([sigma * (x - alpha * mean) / total, 2 * params[row] - 1], axis=-1)


def exact(shares=None):
    """The model of the exact score, with the best variances or others."""
    params = jnp.asarray(best_shares() if shares is None else shares, jnp.float32)
    settings = {"num_levels": LEVELS, "levels": "matched", "learned_variance": True}
    return Model(params, SDE, network, "epsilon", "time", **settings)


def test_the_best_variances_against_their_closed_form():
    """With them the mean of L_k over data and noise is 1/2 log(variance / beta~): to 1e-4 nats at
    each level, and it is the least."""
    levels = levels_of(CHAIN, jnp.float32)
    # E e^2 of the exact score, of which L_k is a linear function.
    error2 = np.square(ALPHA)[:, None] * SPREAD
    error2 = error2 / (error2 + np.square(SIGMA)[:, None])
    kl = partial(step_kl, levels.growth, levels.log_ratio, jnp.asarray(np.sqrt(error2), "f4"))
    shares = jnp.asarray(best_shares(), jnp.float32)
    exact = 0.5 * np.sum(np.log(best_variances() / both_variances()[0]), axis=1)
    np.testing.assert_allclose(kl(shares)[1:], exact, rtol=0, atol=1e-4)
    slope = jax.grad(lambda shares: jnp.sum(kl(shares)[1:]))(shares)
    np.testing.assert_allclose(slope, np.zeros_like(slope), atol=1e-4)  # 1e-6 of rounding
    for other in (0.0, 0.5, 1.0):
        assert np.all(kl(jnp.full_like(shares, other))[1:] >= exact - 1e-4)


@pytest.mark.thorough
def test_the_bound_with_the_best_variances():
    """Each term of `chain_bound` within 5 standard errors of its mean; no fixed variance's bound is
    lower."""
    x0 = MEAN + np.sqrt(SPREAD) * np.random.default_rng(0).normal(size=(2048, len(MEAN)))
    bounds = {
        variance: chain_bound(jax.random.key(0), exact(), jnp.asarray(x0, "f4"), variance=variance)
        for variance in ("learned", "large", "small")
    }
    found = np.asarray(bounds["learned"].steps, np.float64)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(x0))
    wanted = 0.5 * np.sum(np.log(best_variances() / both_variances()[0]), axis=1)
    assert np.all(np.abs(found.mean(axis=0) - wanted) < 5 * error + 1e-4)
    means = {variance: float(jnp.mean(each.diffusion)) for variance, each in bounds.items()}
    assert means["learned"] < min(means["large"], means["small"])


def written_out(x0, z, k, share, bins=None):
    """L_k of one example in nats, float64, by the two Gaussians of a step; at the first level by
    the decoder: of bins (low, high), or a density."""
    x = ALPHA[k] * x0 + SIGMA[k] * z
    total = ALPHA[k] ** 2 * SPREAD + SIGMA[k] ** 2
    denoised = MEAN + ALPHA[k] * SPREAD / total * (x - ALPHA[k] * MEAN)
    if k == 0 and bins is None:
        nu = SIGMA[0] / ALPHA[0]
        error2 = np.square(denoised - x0) / nu**2  # with E z^2 = 1 for z^2
        return np.sum(0.5 * np.log(2 * np.pi * nu**2) + 0.5 * (error2 - z**2 + 1))
    if k == 0:
        small = (1 - (ALPHA[1] / ALPHA[0]) ** 2) * SIGMA[0] ** 2 / SIGMA[1] ** 2
        std = np.sqrt(SIGMA[0] ** (2 * share) * small ** (1 - share))
        low, high = (log_ndtr((edge - denoised) / std) for edge in bins)
        return -np.sum(high + np.log1p(-np.exp(low - high)))
    beta = 1 - (ALPHA[k] / ALPHA[k - 1]) ** 2
    small = beta * SIGMA[k - 1] ** 2 / SIGMA[k] ** 2
    variance = beta**share * small ** (1 - share)
    difference = ALPHA[k - 1] * beta / SIGMA[k] ** 2 * (denoised - x0)
    return 0.5 * np.sum(np.log(variance / small) + (small + difference**2) / variance - 1)


def draws(key, num):
    """The levels and the noise (num, D) of a loss that draws uniformly, by its key."""
    key_level, key_z = jax.random.split(key)
    k = drawn(key_level, num, jnp.full(LEVELS, 1 / LEVELS))
    return np.asarray(k), np.asarray(jax.random.normal(key_z, (num, len(MEAN))), np.float64)


def test_l_vlb_of_the_exact_score_is_that_of_its_gaussians():
    """Each example's term, written out. float32 holds a fall of log-SNR of 0.1 and more to 1e-6."""
    key, num = jax.random.key(3), 2 * LEVELS
    x0 = MEAN + np.sqrt(SPREAD) * np.random.default_rng(1).normal(size=(num, len(MEAN)))
    k, z = draws(key, num)
    assert set(k) == set(range(LEVELS))
    shares = np.random.default_rng(2).uniform(-0.2, 1.2, (LEVELS, len(MEAN)))
    terms = [written_out(x0[i], z[i], k[i], shares[k[i]]) for i in range(num)]
    wanted = LEVELS * np.asarray(terms) / (len(MEAN) * np.log(2))
    points = jnp.asarray(x0, jnp.float32)
    found, history = vlb_loss(key, exact(shares), points, points, None, no_history(LEVELS))
    # Logarithms of float32 variances, to 1e-6, times the levels; and sums of them.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)
    np.testing.assert_array_equal(history.seen, np.bincount(k, minlength=LEVELS))
    simple = np.square(z - SIGMA[k][:, None] * (
        (ALPHA[k][:, None] * (x0 - MEAN) + SIGMA[k][:, None] * z)
        / (np.square(ALPHA[k])[:, None] * SPREAD + np.square(SIGMA[k])[:, None])
    )).mean(axis=1)  # fmt: skip
    hybrid = hybrid_loss(key, exact(shares), points, points, None)
    np.testing.assert_allclose(hybrid, simple + 1e-3 * wanted, rtol=1e-4, atol=1e-5)


def test_the_first_term_is_the_pixels_decoder():
    """By the normal distribution function over the bins of pixels, in one row of four."""
    space, key, num = Pixels((4,), 17, centered=True, dequantize=False), jax.random.key(4), LEVELS
    data = np.random.default_rng(3).integers(1, 16, (num, 4)).astype(np.uint8)
    k, z = draws(key, num)
    shares = np.full((LEVELS, 4), 0.3)
    x0 = np.asarray(space.to_model(jnp.asarray(data)), np.float64)
    found, _ = vlb_loss(
        key, exact(shares), jnp.asarray(x0, "f4"), jnp.asarray(data), space, no_history(LEVELS)
    )
    for i in np.flatnonzero(k == 0):
        bins = x0[i] - 1 / 16, x0[i] + 1 / 16
        wanted = LEVELS * written_out(x0[i], z[i], 0, shares[0], bins) / (4 * np.log(2))
        np.testing.assert_allclose(found[i], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_in_l_hybrid_the_score_has_no_gradient_of_l_vlb(loss, monkeypatch):
    """The output's first half has the same gradient, bit for bit, whatever the weight of L_vlb; in
    L_vlb alone it has one. The second half always has."""
    space, num = Pixels((4,), 17, centered=True, dequantize=False), 2 * LEVELS
    data = jnp.asarray(np.random.default_rng(4).integers(0, 17, (num, 4)), jnp.uint8)
    output = jnp.asarray(np.random.default_rng(5).normal(size=(num, 8)), jnp.float32)
    settings = {"num_levels": LEVELS, "learned_variance": True}

    def total(output, weight):
        monkeypatch.setattr(variances, "VLB_WEIGHT", weight)
        model = Model(output, SDE, lambda params, *_: params, "epsilon", "time", **settings)
        parts = jax.random.key(6), model, space.to_model(data), data, space
        if loss == "hybrid":
            return jnp.sum(hybrid_loss(*parts))
        return weight * jnp.sum(vlb_loss(*parts, no_history(LEVELS))[0])

    some, much = (np.asarray(jax.grad(total)(output, weight)) for weight in (1e-3, 1e3))
    assert np.isfinite(much).all() and np.any(some[:, 4:] != much[:, 4:])
    assert np.array_equal(some[:, :4], much[:, :4]) == (loss == "hybrid")
    k = draws(jax.random.key(6), num)[0]
    assert all(np.any(much[k == level, 4:]) for level in range(LEVELS))


# --- The levels that are drawn --------------------------------------------------------------------


def warmed_up(losses):
    """A history of levels with these last losses, (N, KEPT)."""
    return History(jnp.asarray(losses, jnp.float32), jnp.full(len(losses), KEPT, jnp.int32))


def test_levels_are_drawn_by_their_losses_and_without_bias():
    rng = np.random.default_rng(7)
    losses, values = np.exp(rng.normal(size=(LEVELS, KEPT))), rng.normal(size=LEVELS)
    losses[0] = 0.0
    losses[0, 2] = -3.0  # with a root mean square of 3 / sqrt(10)
    history = warmed_up(losses)
    p = np.asarray(variances.probabilities(history), np.float64)
    size = np.sqrt(np.mean(losses**2, axis=1))  # Nichol, Dhariwal 2021, eq. 18
    wanted = 0.999 * size / size.sum() + 0.001 / LEVELS
    np.testing.assert_allclose(p, wanted, rtol=1e-5)
    # Evenly spread: of 2^20 draws each level has its share to one draw, and float32's sums.
    num = 2**20
    k = np.asarray(drawn(jax.random.key(8), num, jnp.asarray(p, jnp.float32)))
    counts = np.bincount(k, minlength=LEVELS)
    np.testing.assert_allclose(counts / num, p, rtol=0, atol=3e-6)
    estimate = np.mean(values[k] / p[k])
    np.testing.assert_allclose(estimate, values.sum(), atol=3e-6 * np.sum(np.abs(values) / p))
    # Uniform until every level has its ten.
    young = history._replace(seen=history.seen.at[3].set(KEPT - 1))
    np.testing.assert_allclose(variances.probabilities(young), np.full(LEVELS, 1 / LEVELS))
    none = variances.probabilities(warmed_up(np.zeros((LEVELS, KEPT))))
    assert np.isfinite(none).all()


@pytest.mark.thorough
def test_the_estimate_of_l_vlb_keeps_its_mean_and_scatters_less():
    """Uniformly and by the history of the same losses, within 5 standard errors."""
    num = 4096
    x0 = MEAN + np.sqrt(SPREAD) * np.random.default_rng(9).normal(size=(num, len(MEAN)))
    points, history = jnp.asarray(x0, jnp.float32), no_history(LEVELS)
    uniform, history = vlb_loss(jax.random.key(10), exact(), points, points, None, history)
    assert int(history.seen.min()) >= KEPT
    by_losses, _ = vlb_loss(jax.random.key(11), exact(), points, points, None, history)
    first, second = (np.asarray(each, np.float64) for each in (uniform, by_losses))
    error = np.hypot(first.std(), second.std()) / np.sqrt(num)
    assert abs(first.mean() - second.mean()) < 5 * error
    assert second.std() < first.std()


def test_the_history_has_the_last_losses_of_each_level():
    """Against a queue for each level; within a batch a level may come more often than ten times."""
    rng, number = np.random.default_rng(12), 4
    history, queues = no_history(number), [deque(maxlen=KEPT) for _ in range(number)]
    for _ in range(4):
        k = rng.choice(number, 25, p=[0.7, 0.2, 0.1, 0.0]).astype(np.int32)
        losses = rng.normal(size=25).astype(np.float32)
        history = variances.recorded(history, jnp.asarray(k), jnp.asarray(losses))
        for level, loss in zip(k, losses, strict=True):
            queues[level].append(loss)
    for level, queue in enumerate(queues):
        kept = np.sort(np.asarray(history.losses[level]))
        np.testing.assert_array_equal(kept, np.sort([*queue, *[0.0] * (KEPT - len(queue))]))
    assert int(history.seen.sum()) == 100 and int(history.seen[3]) == 0


# --- Respaced sampling ----------------------------------------------------------------------------


def moments(predictor, num_steps, model):
    """Mean and variance of the states at the level of the least noise, (D,), exact: each state is
    linear in the state at T and the steps' noise."""
    sampler = PredictorCorrector(num_steps, predictor, grid="linspace", num_levels=LEVELS)

    def last(inputs):
        return run_with(sampler, SDE, model, inputs[None, 0], inputs[None, 1:])[-1, 0]

    nothing = jnp.zeros((num_steps, len(MEAN)), jnp.float32)
    factors = np.asarray(jax.jacobian(last)(nothing), np.float64)
    assert not np.any(factors * (1 - np.eye(len(MEAN)))[:, None])  # columns are by themselves
    return np.asarray(last(nothing), np.float64), np.einsum("dkd->d", np.square(factors))


@pytest.mark.parametrize("num_steps", [5, *thorough(7, 11, LEVELS)])
def test_respaced_sampling_keeps_the_moments_of_a_gaussian(num_steps):
    """Exactly, whatever the number of levels, where the best variance is one of the two: beta~ for
    data in a point, beta for unit variance (Ho et al. 2020, section 3.2). With the best variances
    of the chain's own steps all columns are right, if all levels are taken."""
    means, wanted = ALPHA[0] * MEAN, np.square(ALPHA[0]) * SPREAD + np.square(SIGMA[0])
    found = {
        name: moments(name, num_steps, exact())
        for name in ("ancestral_learned", "ancestral_large", "ancestral")
    }
    # float32: a step divides by alpha_t / alpha_s, of which the longest is 1e-2 at noise of size 1.
    exact_columns = {"ancestral_learned": (0, 3), "ancestral_large": (3,), "ancestral": (0,)}
    if num_steps == LEVELS:
        exact_columns["ancestral_learned"] = (0, 1, 2, 3)
    for name, columns in exact_columns.items():
        mean, variance = (each[list(columns)] for each in found[name])
        np.testing.assert_allclose(mean, means[list(columns)], atol=2e-3)
        np.testing.assert_allclose(variance, wanted[list(columns)], rtol=5e-3)
    # Between them the learned ones err less than either.
    error = {name: np.abs(variance / wanted - 1)[1:3] for name, (_, variance) in found.items()}
    assert np.all(error["ancestral_learned"] < error["ancestral_large"])
    assert np.all(error["ancestral_learned"] < error["ancestral"])


def test_the_process_may_end_in_noise_where_the_levels_do_not():
    sampler = PredictorCorrector(5, "ancestral_learned", grid="linspace", num_levels=LEVELS)
    drawn = sampler.sample(jax.random.key(13), SDE, exact(), shape=(3, len(MEAN)))
    assert np.isfinite(drawn.x).all() and drawn.nfe.tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match=r"alpha\(T\) = 0"):
        PredictorCorrector(5).sample(jax.random.key(13), SDE, exact(), shape=(3, len(MEAN)))
    with pytest.raises(
        ValueError, match="predictor = 'ancestral_learned': allowed are euler_maruyama, "
    ):
        sampler.sample(jax.random.key(13), SDE, lambda x, t: -x, shape=(3, len(MEAN)))
