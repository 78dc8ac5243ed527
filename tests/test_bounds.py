"""Variational bounds against closed forms, the exact density and the flow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from score_sde import oracle
from score_sde.bounds import VARIANCES as VARIANCES_OF_STEPS
from score_sde.bounds import chain_bound, likelihood_bound, step_kl
from score_sde.discrete import discretization
from score_sde.likelihood import log_likelihood
from score_sde.schedules import Cosine, Flow, Sigmoid
from score_sde.score import Model
from score_sde.sde import SDE, VPSDE
from score_sde.spaces import Pixels
from tests.cases import PROCESSES, PUBLISHED, only, overlapping_mixture

DIMS, T_MIN = 4, 1e-3
VARIANCES = np.asarray([0.02, 0.1, 0.5, 2.0])
MEAN = np.asarray([0.5, -0.3, 0.0, 1.0])
ENDING_IN_NOISE = {"cosine, T = 1": Cosine(), "sigmoid, T = 1": Sigmoid(), "flow, T = 1": Flow()}


class Straight(SDE):
    """Variance preserving, with a log-SNR that falls in a straight line."""

    top: float
    bottom: float

    def alpha(self, t):
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t):
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))

    def log_snr(self, t):
        return self.top + t * (self.bottom - self.top)


def at(sde, t):
    return (float(of(jnp.full(1, t))[0]) for of in (sde.alpha, sde.sigma))


def gap(sde, x0):
    """By how much the bound exceeds -log p(x0) with the exact score of N(MEAN, VARIANCES), nats,
    (B,), in float64. The reverse process has the data's own paths, so only its two ends cost:

    prior: E log p_T(x_T) / prior(x_T) given x0; decoder: E log p(x0 | x_t) / N(denoised, s^2), with
    s = sigma / alpha, the posterior's variance r = v s^2 / (v + s^2) and, with k = v / (v + s^2),
    E(x0 - denoised)^2 = (1 - k)^2 (x0 - m)^2 + k^2 s^2.
    """
    offset2 = np.square(np.asarray(x0, np.float64) - MEAN)
    alpha, sigma = at(sde, sde.T)
    std, variance = float(sde.prior_std()), alpha**2 * VARIANCES + sigma**2
    second = np.square(alpha * np.asarray(x0, np.float64)) + sigma**2
    log_p = -0.5 * (np.log(variance) + (alpha**2 * offset2 + sigma**2) / variance)
    prior = log_p + 0.5 * (np.log(std**2) + second / std**2)
    alpha, sigma = at(sde, T_MIN)
    s2 = (sigma / alpha) ** 2
    k = VARIANCES / (VARIANCES + s2)
    error2 = (1 - k) ** 2 * offset2 + k**2 * s2
    decoder = 0.5 * (np.log(s2 / (k * s2)) + error2 * (1 / s2 - 1 / (k * s2)))
    return (prior + decoder).sum(axis=1)


@pytest.fixture(scope="module")
def gaussian():
    return oracle.gaussian(jnp.asarray(MEAN, jnp.float32), jnp.diag(jnp.asarray(VARIANCES, "f4")))


@pytest.mark.parametrize("name", only(("vp", "ve", "flow, T = 1"), [*PROCESSES, *ENDING_IN_NOISE]))
def test_a_gaussians_bound_is_its_density_and_the_two_ends(name, gaussian):
    """The gap in closed form, within 4 standard errors of 1024 items: of their times and noise
    alone, as item and closed form share x0."""
    sde = (PROCESSES | ENDING_IN_NOISE)[name]
    x0 = gaussian.sample(jax.random.key(0), 1024)
    found = likelihood_bound(
        jax.random.key(1), sde, gaussian.score(sde), x0, num_times=400, t_min=T_MIN
    )
    # log p of the data, without the noise of t_min.
    log_p = -0.5 * np.sum(
        np.square(np.asarray(x0) - MEAN) / VARIANCES + np.log(2 * np.pi * VARIANCES), axis=1
    )
    excess = -np.asarray(found.log_prob) - (-log_p + gap(sde, x0))
    error = excess.std(ddof=1) / np.sqrt(len(x0))
    assert abs(excess.mean()) < 4 * error and error < 0.1
    total = found.prior + found.diffusion + found.reconstruction
    np.testing.assert_allclose(found.log_prob, -total, rtol=1e-6)
    np.testing.assert_array_equal(found.nfe, 401)
    # Evenly spread times scatter less than independent ones, as what is stated counts them.
    assert excess.std() < 1.05 * np.sqrt(np.mean(np.square(found.time_error)))


def test_the_schedule_between_equal_ends_does_not_matter(gaussian):
    """The same draws meet the same noise levels: equal up to rounding. The integral over some 17
    of log-SNR of errors around D is a sum in float32 of 1e-5 relative, as is the times' inverse."""
    vp = VPSDE()
    ends = [2 * float(np.log(alpha / sigma)) for alpha, sigma in (at(vp, T_MIN), at(vp, vp.T))]
    straight = Straight(ends[0] + (ends[0] - ends[1]) * T_MIN / (1 - T_MIN), ends[1])
    x0 = gaussian.sample(jax.random.key(2), 64)
    one, other = (
        likelihood_bound(jax.random.key(3), sde, gaussian.score(sde), x0, num_times=50, t_min=T_MIN)
        for sde in (vp, straight)
    )
    np.testing.assert_allclose(one.diffusion, other.diffusion, rtol=1e-3)
    np.testing.assert_allclose(one.reconstruction, other.reconstruction, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.diffusion + one.prior, other.diffusion + one.prior, rtol=1e-3)


@pytest.mark.thorough
def test_the_flows_likelihood_lies_below():
    """In -log p, on average over a mixture's draws; the two start at the same times."""
    sde, mixture = PUBLISHED["vp"], overlapping_mixture(DIMS)
    x0 = mixture.sample(jax.random.key(4), 512)
    score = mixture.score(sde)
    bound = likelihood_bound(jax.random.key(5), sde, score, x0, num_times=200, t_min=T_MIN)
    flow = log_likelihood(
        jax.random.key(6), sde, score, x0, divergence="exact", t_min=T_MIN, rtol=1e-4, atol=1e-4
    )
    above = np.asarray(flow.log_prob - bound.log_prob)
    error = above.std(ddof=1) / np.sqrt(len(above))
    assert above.mean() > -3 * error and error < 0.1
    # The exact score leaves the ends alone: log p at t_min instead of 0, 1e-3 of noise.
    assert above.mean() < 0.1 + 3 * error


def test_a_chains_network_has_no_bound_in_time_where_no_data_are_left(gaussian):
    """Beyond its levels it was not trained."""
    model = Model({}, Cosine(), denoiser, "denoised", "time", num_levels=100)
    with pytest.raises(ValueError, match=r"Cosine: alpha\(T\) = 0"):
        likelihood_bound(jax.random.key(0), Cosine(), model, gaussian.sample(jax.random.key(1), 2))


def test_an_item_does_not_depend_on_its_batch_mates(gaussian):
    sde, x0 = PUBLISHED["vp"], gaussian.sample(jax.random.key(7), 6)
    key, score = jax.random.key(8), gaussian.score(sde)
    whole = likelihood_bound(key, sde, score, x0, num_times=5)
    parts = [likelihood_bound(key, sde, score, x0[i : i + 3], num_times=5, first=i) for i in (0, 3)]
    joined = np.concatenate([part.log_prob for part in parts])
    np.testing.assert_allclose(joined, whole.log_prob, rtol=1e-5, atol=1e-4)  # rounding


# --- A discrete chain -----------------------------------------------------------------------------


def network(params, x, level, condition):
    """The exact noise of N(m, v) at levels of DDPM's chain: (alpha, sigma, m, v). Beside it what
    makes the shares those of `shares`."""
    alpha, sigma = (table[level.astype(jnp.int32)][:, None] for table in params[:2])
    mean, variance = params[2][None], params[3][None]
    noise = sigma * (x - alpha * mean) / (jnp.square(alpha) * variance + jnp.square(sigma))
    return jnp.concatenate([noise, 2 * shares("learned", x.shape).astype("f4") - 1], axis=-1)


def chained(num_levels, mean=MEAN, variances=VARIANCES):
    sde = VPSDE()
    chain = discretization(sde).chain(num_levels)
    params = (*chain, jnp.asarray(mean, "f4"), jnp.asarray(variances, "f4"))
    model = Model(params, sde, network, "epsilon", "time", num_levels, learned_variance=True)
    return model, chain


def shares(variance, shape):
    """Of the larger variance: 0, 1, or what a network might say, beyond them too."""
    fixed = VARIANCES_OF_STEPS[variance]
    return np.linspace(-0.2, 1.1, DIMS) * np.ones(shape) if fixed is None else np.full(shape, fixed)


@pytest.mark.parametrize("variance", VARIANCES_OF_STEPS)
def test_a_step_is_the_kl_of_two_gaussians(variance):
    """DDPM's posteriors and KL divergences written out (Ho et al. 2020, eq. 6 to 8), float64."""
    _, chain = chained(100)
    alpha, sigma = (np.asarray(table, np.float64) for table in chain)
    rng = np.random.default_rng(0)
    k = np.asarray([1, 2, 50, 99])
    x0, z = rng.normal(size=(2, len(k), DIMS))
    a, s, a_before, s_before = (
        of[:, None] for of in (alpha[k], sigma[k], alpha[k - 1], sigma[k - 1])
    )
    kept = np.square(a / a_before)
    beta = 1 - kept
    x = a * x0 + s * z
    total = a**2 * VARIANCES + s**2
    denoised = MEAN + a * VARIANCES / total * (x - a * MEAN)

    def posterior_mean(x0):
        return a_before * beta / s**2 * x0 + np.sqrt(kept) * s_before**2 / s**2 * x

    narrow, share = beta * s_before**2 / s**2, shares(variance, x0.shape)
    wide = beta**share * narrow ** (1 - share)
    difference2 = np.square(posterior_mean(x0) - posterior_mean(denoised))
    kl = 0.5 * np.sum(narrow / wide - 1 - np.log(narrow / wide) + difference2 / wide, axis=1)
    # What the package computes, from the error of the noise.
    error = z - s * (x - a * MEAN) / total
    growth, log_ratio = np.square(a_before * s / (a * s_before)) - 1, 2 * np.log(s_before / s)
    numbers = (growth[:, 0], log_ratio[:, 0], error, share)
    found = step_kl(*(jnp.asarray(each, jnp.float32) for each in numbers))
    np.testing.assert_allclose(found, kl, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variance", VARIANCES_OF_STEPS)
def test_a_chains_terms_are_those_written_out(variance):
    """Data in one point, whose exact denoiser makes no error: every step costs what the variances
    cost, and nothing by the small ones. To 1e-4 nats, without any noise."""
    model, chain = chained(100, variances=np.zeros(DIMS))
    x0 = jnp.asarray(np.tile(MEAN, (3, 1)), jnp.float32)
    found = chain_bound(jax.random.key(0), model, x0, variance=variance)
    alpha, sigma = (np.asarray(table, np.float64) for table in chain)
    ratio = np.square(sigma[:-1] / sigma[1:])[:, None] ** shares(variance, (99, DIMS))
    steps = 0.5 * np.sum(ratio - 1 - np.log(ratio), axis=1)
    np.testing.assert_allclose(found.steps, np.tile(steps, (3, 1)), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.diffusion, np.full(3, steps.sum()), rtol=0, atol=1e-3)
    second = np.square(alpha[-1] * MEAN) + sigma[-1] ** 2 - 1 - np.log(sigma[-1] ** 2)
    np.testing.assert_allclose(found.prior, np.full(3, 0.5 * second.sum()), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.nfe, 100)


def chain_written_out(chain, x0):
    """A chain's bound by the larger variance with the exact score, averaged over the noise, nats,
    (B,), in float64. With s = sigma / alpha and k = v / (v + s^2) the mean square of the error,
    given x0, is k^2 + k (1 - k) (x0 - m)^2 / v."""
    alpha, sigma = (np.asarray(table, np.float64) for table in chain)
    s2, ratio = np.square(sigma / alpha), np.square(sigma[:-1] / sigma[1:])
    k = VARIANCES / (VARIANCES + s2[:, None])
    weights = 0.5 * np.append(1.0, (s2[1:] / s2[:-1] - 1) * ratio)  # first, the decoder's
    given = np.square(x0 - MEAN) / VARIANCES
    errors = np.sum(weights @ np.square(k) + given * (weights @ (k * (1 - k))), axis=1)
    fixed = 0.5 * DIMS * (np.sum(ratio - 1 - np.log(ratio)) + np.log(2 * np.pi * s2[0]))
    second = np.square(alpha[-1] * x0) + sigma[-1] ** 2 - 1 - np.log(sigma[-1] ** 2)
    return errors + fixed + 0.5 * second.sum(axis=1)


def test_the_flow_lies_below_the_chain_and_beside_the_bound(gaussian):
    """-log p of the same draws with the exact score, on average: DDPM's chain of 25 levels is above
    the flow by what is written out, and the bound in continuous time only by its ends."""
    x0 = gaussian.sample(jax.random.key(11), 4096)
    sde, (model, chain) = PUBLISHED["vp"], chained(25)
    keys, score = jax.random.split(jax.random.key(12), 3), gaussian.score(sde)
    loose = {"divergence": "exact", "t_min": T_MIN, "rtol": 1e-4, "atol": 1e-4}
    flow = np.asarray(log_likelihood(keys[0], sde, score, x0, **loose).log_prob, np.float64)
    bound = likelihood_bound(keys[1], sde, score, x0, num_times=50, t_min=T_MIN).log_prob
    vlb = chain_bound(keys[2], model, x0).log_prob
    above = {"bound": flow - np.asarray(bound), "vlb": flow - np.asarray(vlb)}
    error = {name: each.std(ddof=1) / np.sqrt(len(x0)) for name, each in above.items()}
    ends = gap(sde, x0).mean()
    # The flow's own end, log p at t_min in place of 0: 1e-3 of noise beside variances of 0.02.
    assert abs(above["bound"].mean() - ends) < 4 * error["bound"] + 1e-2
    x0 = np.asarray(x0, np.float64)
    log_p = -0.5 * (np.square(x0 - MEAN) / VARIANCES + np.log(2 * np.pi * VARIANCES)).sum(axis=1)
    written = (chain_written_out(chain, x0) + log_p).mean()
    assert abs(above["vlb"].mean() - written) < 4 * error["vlb"] + 1e-2
    assert above["vlb"].mean() > 10 * error["vlb"] and written > above["bound"].mean()


def denoiser(params, x, log_sigma, condition):
    """The denoised data of the exact score of the Gaussian under `Flow`."""
    sigma = jnp.exp(log_sigma)[:, None]
    alpha = 1.0 - sigma
    mean, variance = (jnp.asarray(each, jnp.float32)[None] for each in (MEAN, VARIANCES))
    shrunk = alpha * variance / (jnp.square(alpha) * variance + jnp.square(sigma))
    return mean + shrunk * (x - alpha * mean)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_last_of_a_processs_levels_may_be_pure_noise(variance, gaussian):
    """The terms written out, averaged over the noise, within 4 standard errors. With s the factor
    of x_k, denoised - x0 = (1 - s alpha) (m - x0) + s sigma z."""
    sde, number = Flow(), 40
    model = Model({}, sde, denoiser, "denoised", "log_sigma")
    x0 = gaussian.sample(jax.random.key(13), 4096)
    found = chain_bound(
        jax.random.key(14), model, x0, variance=variance, num_times=number, t_min=T_MIN
    )
    times = np.asarray(sde.time_steps(T_MIN, sde.T, number), np.float64)
    alpha, sigma = (table[np.argsort(times)][:, None] for table in (1.0 - times, times))
    assert alpha[-1] == 0.0
    snr, offset2 = np.square(alpha / sigma), np.square(np.asarray(x0, np.float64) - MEAN)
    s = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
    ratio = (sigma[:-1] / sigma[1:]) ** (2 if variance == "large" else 0)
    falls = 0.5 * (snr[:-1] - snr[1:]) * ratio
    steps = offset2 @ (falls * np.square(1 - s * alpha)[1:]).T
    steps += (falls * np.square(s * sigma)[1:]).sum(1)
    steps += 0.5 * DIMS * (ratio - 1 - np.log(ratio))[:, 0]
    difference = np.asarray(found.steps, np.float64) - steps
    error = difference.std(axis=0, ddof=1) / np.sqrt(len(x0))
    # Of 39 steps; beside it float32's rounding of denoised - x0, where that is least.
    assert np.all(np.abs(difference.mean(axis=0)) < 4 * error + 1e-4)
    np.testing.assert_array_equal(found.prior, 0.0)


@pytest.mark.thorough
def test_a_chain_of_n_levels_is_above_the_density_by_the_order_of_1_over_n(gaussian):
    """By the larger variance; the bound in continuous time is the density, up to its ends (above).
    Written out, four times the levels leave a quarter, up to a relative rest that is of first order
    itself: 0.09, 0.03 and 0.01. And the package's bound of 25 and 50 levels is what is written
    out, within 4 standard errors of the noise alone, as both have the same x0. Such an error is at
    most a twentieth of what a chain lies above the density."""
    # A mean over these two points is one over the data, as nothing but squares of x0 comes in.
    points = MEAN + np.sqrt(VARIANCES) * np.asarray([[1.0], [-1.0]])
    entropy = 0.5 * np.sum(np.log(2 * np.pi * VARIANCES) + 1)
    models = {number: chained(number) for number in (25, 50, 100, 400, 1600)}
    above = {
        n: chain_written_out(chain, points).mean() - entropy for n, (_, chain) in models.items()
    }
    fourfold = np.asarray([above[number] for number in (25, 100, 400, 1600)])
    rest = 4 * fourfold[1:] / fourfold[:-1] - 1
    assert fourfold.min() > 0 and (rest > 0).all() and (rest < [0.1, 0.04, 0.02]).all()
    x0 = gaussian.sample(jax.random.key(9), 2**14)
    for number in (25, 50):
        model, chain = models[number]
        each = -np.asarray(chain_bound(jax.random.key(10), model, x0).log_prob, np.float64)
        difference = each - chain_written_out(chain, np.asarray(x0, np.float64))
        error = difference.std(ddof=1) / np.sqrt(len(x0))
        assert error < 0.05 * above[number] and abs(difference.mean()) < 4 * error


# --- Pixels ---------------------------------------------------------------------------------------


def test_the_discretized_decoder_is_a_distribution_over_the_levels():
    """Its probabilities are those of the normal distribution function, and add up to one."""
    space = Pixels((1, 1, 1), 17, centered=True, dequantize=False)
    values = jnp.arange(17, dtype=jnp.uint8).reshape(17, 1, 1, 1)
    edges = np.concatenate([[-np.inf], np.arange(-15, 16, 2) / 16, [np.inf]])
    for mean, std in ((0.0, 0.3), (0.99, 0.05), (-1.4, 0.1)):
        log_p = space.log_decoded(values, jnp.full((17, 1, 1, 1), mean), jnp.full((1,) * 4, std))
        # float32: some 1e-7 of the arguments, of up to 25 deviations, where log P is their square.
        exact = np.diff(ndtr((edges - mean) / std))
        seen = exact > 1e-30
        np.testing.assert_allclose(np.exp(log_p)[seen], exact[seen], rtol=1e-3, atol=1e-7)
        assert np.isfinite(log_p).all() and abs(float(jnp.sum(jnp.exp(log_p))) - 1) < 1e-5


# Pixels of 256 levels, each with the mean and the deviation of what is decoded.
DECODED = [(0, -0.99, 0.01), (255, 0.98, 0.02), (0, -1.003, 0.002), (255, 0.9, 0.03)]
DECODED += [(1, -0.99, 0.005), (128, 0.0, 0.01), (100, -0.2, 0.004), (254, 1.0, 0.01)]


def log_bins(pixel, mean, std):
    """log P of bins of 2 / 255 about 2 pixel / 255 - 1, the ends open (Ho et al. 2020, eq. 13)."""
    low, high = 2 * pixel / 255 - 1 - 1 / 255, 2 * pixel / 255 - 1 + 1 / 255
    low, high = np.where(pixel == 0, -np.inf, low), np.where(pixel == 255, np.inf, high)
    return np.log(norm.cdf(high, mean, std) - norm.cdf(low, mean, std))


def test_the_decoder_of_256_levels():
    space = Pixels((1,), 256, centered=True, dequantize=False)
    pixel, mean, std = np.asarray(DECODED).T
    given = (jnp.asarray(each[:, None], jnp.float32) for each in (mean, std))
    found = jax.jit(space.log_decoded)(jnp.asarray(pixel[:, None], jnp.uint8), *given)
    # Places near 1 in float32 by a deviation of 0.002: 3e-5 of it, and slopes of some 5.
    np.testing.assert_allclose(found, log_bins(pixel, mean, std), rtol=0, atol=5e-4)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_a_chains_decoder_has_the_small_variance_of_the_second_level(variance):
    """By either variance, as DDPM's: beta_2 (1 - abar_1) / (1 - abar_2). The data are in one point,
    beside the pixels, so what is decoded is that point, whatever the noise."""
    pixel, off = np.asarray([0, 255, 100, 17]), np.asarray([0.006, -0.003, 0.004, -0.012])
    point = 2 * pixel / 255 - 1 + off
    model, _ = chained(1000, mean=point, variances=np.zeros(DIMS))
    space = Pixels((4,), 256, centered=True, dequantize=False)
    data = jnp.asarray(pixel[None], jnp.uint8)
    found = chain_bound(jax.random.key(0), model, data, space, variance=variance)
    beta_1, beta_2 = 1e-4, 1e-4 + (0.02 - 1e-4) / 999
    std = np.sqrt(beta_2 * beta_1 / (1 - (1 - beta_1) * (1 - beta_2)))
    # The noise next to the point is of 1e-2: rounded at 1e-5 of it, times slopes of up to 3.
    wanted = -log_bins(pixel, point, std).sum()
    np.testing.assert_allclose(found.reconstruction, [wanted], rtol=0, atol=1e-3)


def test_a_perfect_model_of_one_image_needs_no_bits():
    """The denoiser of one image makes no error, and the decoder finds the image's own bins."""
    space = Pixels((2, 1, 2), 17, centered=True, dequantize=False)
    image = jnp.asarray([[[0, 5]], [[16, 9]]], jnp.uint8)[None]
    sde, mean = PUBLISHED["vp"], space.to_model(image)

    def score(x, t):
        alpha, sigma = (of(t)[:, None, None, None] for of in (sde.alpha, sde.sigma))
        return (alpha * mean - x) / jnp.square(sigma)

    found = likelihood_bound(jax.random.key(0), sde, score, image, space, num_times=10)
    assert float(found.diffusion[0]) < 1e-3  # float32: (alpha x0 + sigma z - alpha x0) / sigma - z
    assert abs(float(found.reconstruction[0])) < 1e-6  # sigma = 1e-3 in bins of 1/8
    # alpha(T)^2 = 4.3e-5: what the prior costs, in bits of 4 pixels.
    assert 0 < float(found.bits_per_dim[0]) < 1e-3
