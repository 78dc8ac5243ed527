"""The loss: its formula, its times, its weightings (the recorded losses are in tests/convert)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde import build, presets
from score_sde.config import changed
from score_sde.data import describe
from score_sde.discrete import discretization
from score_sde.losses import (
    LOSSES,
    WEIGHTS,
    Pair,
    correct_by_time,
    cross_entropy,
    denoising_score_matching,
    discrete_score_matching,
    error_by_time,
    level_error,
    sample_times,
    weighted_error,
)
from score_sde.schedules import EDM, Flow
from score_sde.score import PARAMETERIZATIONS, Model
from score_sde.sde import expand
from score_sde.times import TIMES, low_discrepancy
from tests.cases import PROCESSES, PUBLISHED, converted, overlapping_mixture


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("times", "weight"), [*((times, "epsilon") for times in TIMES), ("log_snr", "likelihood")]
)
def test_times_lie_between_t_min_and_T(name, times, weight):
    sde = PROCESSES[name]
    t, weight = sample_times(jax.random.key(0), sde, 1000, Pair(times, weight), 1e-5)
    assert t.min() >= np.float32(1e-5) and t.max() <= np.float32(sde.T)
    assert np.all(np.asarray(weight) > 0)


def test_low_discrepancy_times_fill_every_cell_once():
    u = np.asarray(low_discrepancy(jax.random.key(3), 64))
    assert sorted(np.floor(u * 64 - u[0] * 64 % 1 + 1e-3).astype(int) % 64) == list(range(64))


@pytest.mark.parametrize("name", PROCESSES)
def test_importance_sampling_leaves_the_likelihood_weighted_loss(name):
    """E over uniform t of g^2 / sigma^2 |e|^2 = E over uniform log-SNR of its weight |e|^2."""
    sde = PROCESSES[name]
    t_min, num = 0.01, 20_000
    t, weight = sample_times(jax.random.key(0), sde, num, LOSSES["likelihood"], t_min)
    uniform = jnp.asarray(t_min + (np.arange(num) + 0.5) / num * (sde.T - t_min), jnp.float32)

    def error(t):  # any smooth function of the time
        return 1.0 + jnp.sin(3.0 * t)

    g2_over_sigma2 = jnp.square(sde.diffusion(uniform) / sde.sigma(uniform))
    # Both are midpoint-like sums of smooth integrands with 20,000 points; the integrand's range is
    # below 1e3.
    np.testing.assert_allclose(
        jnp.mean(weight * error(t)), jnp.mean(g2_over_sigma2 * error(uniform)), rtol=2e-3
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_score_has_the_smallest_loss_and_a_known_one(name):
    """For data N(0, v I) the loss at t is that of the best estimate of z: alpha^2 v / (alpha^2 v +
    sigma^2)."""
    sde, v, dims = PROCESSES[name], 0.3, 8
    t, num = 0.4, 20_000
    key_x, key_z = jax.random.split(jax.random.key(0))
    x0 = jnp.sqrt(v) * jax.random.normal(key_x, (num, dims))
    z = jax.random.normal(key_z, (num, dims))
    times = jnp.full(num, t)
    alpha, sigma = sde.alpha(times)[0], sde.sigma(times)[0]
    variance = alpha**2 * v + sigma**2

    def loss(scale):
        return jnp.mean(
            weighted_error(sde, lambda x, t: -scale * x / variance, x0, times, z, jnp.ones(num))
        )

    expected = alpha**2 * v / variance
    # Mean of num * dims squares of variance 2 expected^2: four standard errors are 1.4e-2 relative.
    np.testing.assert_allclose(loss(1.0), expected, rtol=1.5e-2)
    assert loss(1.0) < loss(0.9) and loss(1.0) < loss(1.1)


def test_the_error_by_time_is_known_for_a_gaussian_and_no_matter_of_batches():
    """As above, at several times at once."""
    sde, v, num = PROCESSES["vp"], 0.3, 4000
    x0 = jnp.sqrt(v) * jax.random.normal(jax.random.key(1), (num, 8))
    t, key = jnp.array([0.1, 0.4, 0.9]), jax.random.key(2)
    alpha2, sigma2 = jnp.square(sde.alpha(t)), jnp.square(sde.sigma(t))

    def score(x, t):
        return -x / expand(jnp.square(sde.alpha(t)) * v + jnp.square(sde.sigma(t)), x)

    found = error_by_time(key, sde, score, x0, t)
    assert found.shape == (num, 3)
    # The mean of 32,000 squares: four standard errors are 3.2 % relative.
    expected = alpha2 * v / (alpha2 * v + sigma2)
    np.testing.assert_allclose(found.mean(0), expected, rtol=0.035)
    part = error_by_time(key, sde, score, x0[1000:1010], t, 1000)
    np.testing.assert_allclose(part, found[1000:1010], rtol=1e-5)  # sums of 8 in another order


def test_a_classifier_that_knows_nothing_loses_log_K():
    x0, labels = jnp.zeros((5, 2)), jnp.arange(5) % 3
    loss = cross_entropy(
        jax.random.key(0), PROCESSES["ve"], lambda x, t: jnp.full((len(x), 3), 0.7), x0, labels
    )
    np.testing.assert_allclose(loss, np.log(3.0), rtol=1e-6)


def test_the_accuracy_by_time_is_known_for_two_points():
    """Of data at +1 and -1 the side of x_t is right with probability Phi(alpha / sigma)."""
    sde, num = PROCESSES["vp"], 4000
    labels = jnp.arange(num) % 2
    x0 = jnp.where(labels == 1, 1.0, -1.0)[:, None]
    t = jnp.array([0.01, 0.3, 0.9])
    found = correct_by_time(
        jax.random.key(0), sde, lambda x, t: jnp.concatenate([-x, x], axis=1), x0, labels, t
    )
    assert found.shape == (num, 3)
    expected = jax.scipy.stats.norm.cdf(sde.alpha(t) / sde.sigma(t))
    # Four standard errors of a share of 4000.
    error = 4.0 * jnp.sqrt(expected * (1.0 - expected) / num)
    np.testing.assert_array_less(jnp.abs(found.mean(0) - expected), error + 1e-6)


def test_half_the_sum_is_the_mean_times_half_the_dimensions():
    sde, mixture = PROCESSES["ve"], overlapping_mixture(6)
    x0 = mixture.sample(jax.random.key(0), 16).reshape(16, 2, 3, 1)
    both = [
        denoising_score_matching(jax.random.key(1), sde, mixture.score(sde), x0, reduce_mean=mean)
        for mean in (True, False)
    ]
    assert both[0].shape == (16,)
    np.testing.assert_allclose(both[1], 3.0 * both[0], rtol=1e-5)


def test_unknown_times_and_weights_are_refused():
    sde, key = PROCESSES["vp"], jax.random.key(0)
    with pytest.raises(
        ValueError, match="times = 'sigma': allowed are uniform, log_snr, alternate"
    ):
        sample_times(key, sde, 4, Pair("sigma", "epsilon"), 1e-5)
    with pytest.raises(ValueError, match="weight = 'sigma': allowed are epsilon, likelihood, min_"):
        sample_times(key, sde, 4, Pair("uniform", "sigma"), 1e-5)
    with pytest.raises(ValueError, match=r"weight = 'flow': .* for a score without the errors"):
        denoising_score_matching(key, sde, lambda x, t: -x, jnp.ones((2, 3)), loss=LOSSES["flow"])


# --- Times and weights ----------------------------------------------------------------------------


def test_the_papers_times_are_drawn_as_before():
    """The formulas that trained the published runs of this package, to the bit."""
    sde, key, t_min = PROCESSES["vp"], jax.random.key(5), 1e-5
    u = low_discrepancy(key, 64)
    top, bottom = (sde.log_snr(jnp.full((1,), t)) for t in (t_min, sde.T))
    evenly = t_min + u * (sde.T - t_min)
    by_snr = jnp.clip(sde.inverse_log_snr(top + u * (bottom - top)), t_min, sde.T)
    wanted = {
        "paper": (evenly, jnp.ones(64)),
        "likelihood": (by_snr, jnp.full_like(u, (top - bottom)[0] / (sde.T - t_min))),
        "mixture": (jnp.where(jnp.arange(64) % 2 == 0, evenly, by_snr), jnp.ones(64)),
    }
    for name, (t, weight) in wanted.items():
        found = sample_times(key, sde, 64, LOSSES[name], t_min)
        np.testing.assert_array_equal(found[0], t)
        np.testing.assert_array_equal(found[1], weight)


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "flow"])
def test_normal_times_are_those_of_their_papers(name):
    """10,000 evenly spread numbers: quantiles to 1e-3 of a standard deviation."""
    sde, num, quantiles = PROCESSES[name], 10_000, np.asarray([0.1, 0.5, 0.9])
    normal = np.asarray([-1.2815516, 0.0, 1.2815516])
    t, _ = sample_times(jax.random.key(0), sde, num, Pair("log_normal", "velocity"), 1e-5)
    log_nu = np.quantile(-0.5 * np.asarray(sde.log_snr(t)), quantiles)
    # VE's least noise is 0.01, and log 0.01 = -4.6 is three standard deviations below the mean.
    np.testing.assert_allclose(log_nu, -1.2 + 1.2 * normal, atol=5e-3)
    t, _ = sample_times(
        *(jax.random.key(0), sde, num, Pair("logit_normal", "flow"), 1e-5),
        times_mean=0.5,
        times_std=0.8,
    )
    share = np.quantile(np.asarray(t) / float(sde.T), quantiles)
    np.testing.assert_allclose(np.log(share / (1.0 - share)), 0.5 + 0.8 * normal, atol=5e-3)


@pytest.mark.parametrize("times", TIMES)
def test_the_likelihoods_weight_is_one_integral_by_any_times(times):
    """Of 1 + sin(lambda / 3) over the log-SNR: by times of infinite range up to what they miss."""
    sde, t_min, num = PROCESSES["vp"], 1e-3, 100_000
    t, weight = sample_times(jax.random.key(0), sde, num, Pair(times, "likelihood"), t_min)
    top, bottom = (float(sde.log_snr(jnp.full(1, t))[0]) for t in (t_min, 1.0))
    low, high = (-6.0, 4.0)  # all of them draw some here
    log_snr = sde.log_snr(t)
    inside = (log_snr > low) & (log_snr < high)
    found = jnp.mean(jnp.where(inside, weight * (1.0 + jnp.sin(log_snr / 3.0)), 0.0))
    exact = (high - low + 3.0 * (np.cos(low / 3.0) - np.cos(high / 3.0))) / (sde.T - t_min)
    assert bottom < low and high < top
    np.testing.assert_allclose(found, exact, rtol=5e-3)


@pytest.mark.parametrize(
    ("name", "density", "end"),
    [
        # alpha^2 beta / sigma^2 of VP's alpha^2 = exp(-t / 10 - 9.95 t^2).
        ("vp", lambda t: (0.1 + 19.9 * t) / np.expm1(0.1 * t + 9.95 * t**2), 1.0),
        ("edm", lambda t: 1.0 / (t * (1.0 + t**2)), 80.0),  # nu = t
    ],
)
def test_importance_draws_times_by_their_share_in_the_likelihood(name, density, end):
    """1 / (1 + nu^2) in log-SNR is alpha^2 g^2 / sigma^2 in t where alpha^2 + sigma^2 = 1, and
    2 / (t (1 + t^2)) where nu = t (Zheng et al. 2023, section 4)."""
    num, t_min, sde = 1000, 0.01, PROCESSES[name]
    t, _ = sample_times(jax.random.key(0), sde, num, Pair("importance", "epsilon"), t_min)
    fine = np.geomspace(t_min, end, 20_001)
    mass = np.diff(fine) * (density(fine[1:]) + density(fine[:-1])) / 2
    below = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    shares = np.sort(np.interp(np.asarray(t, np.float64), fine, below))
    # Evenly spread: the k-th share is between k / n and (k + 1) / n; float32 and the sum add less.
    middles = (np.arange(num) + 0.5) / num
    np.testing.assert_allclose(shares, middles, rtol=0, atol=0.6 / num)


@pytest.mark.parametrize(
    ("own", "published"),
    [
        ("epsilon", lambda snr: np.minimum(snr, 5.0) / snr),
        ("denoised", lambda snr: np.minimum(snr, 5.0)),
        ("velocity", lambda snr: np.minimum(snr, 5.0) / (snr + 1.0)),
    ],
)
def test_min_snr_has_the_published_weight_for_each_kind_of_network(own, published):
    """The loss of an output that is 0.1 too large everywhere (Hang et al. 2023, section 3.4)."""
    told = []

    def apply(params, x, noise, condition):  # of data 0 x is sigma z, and v is alpha z
        told.append(np.asarray(noise, np.float64) / 999.0)
        t = (noise / 999.0)[:, None]
        ratio = 1.0 / jnp.sqrt(jnp.expm1(0.1 * t + 9.95 * t**2))  # alpha / sigma
        sigma = jnp.sqrt(-jnp.expm1(-0.1 * t - 9.95 * t**2))
        return {"epsilon": x / sigma, "denoised": 0.0 * x, "velocity": ratio * x}[own] + 0.1

    model = Model(None, PROCESSES["vp"], apply, own, "time")
    x0, uniform = jnp.zeros((64, 3)), Pair("uniform", "min_snr")
    found = denoising_score_matching(
        jax.random.key(0), model.sde, model, x0, loss=uniform, t_min=0.01, error=model.error
    )
    snr = 1.0 / np.expm1(0.1 * told[0] + 9.95 * told[0] ** 2)
    assert snr.min() < 1e-3 and np.sum(snr > 5.0) > 5
    # At T the error of the noise is 0.1 alpha = 7e-4, of sums that round at 1e-7.
    np.testing.assert_allclose(found, 0.01 * published(snr), rtol=2e-3)


@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w not in ("consistency", "second_order")])
def test_a_weight_is_its_factor_of_the_noises_error(weight):
    """From nu = sigma / alpha, for a network of any output."""
    sde, x0 = PROCESSES["vp"], jax.random.normal(jax.random.key(1), (64, 3))
    factors = {
        "epsilon": lambda nu: np.ones_like(nu),
        "min_snr": lambda nu: np.minimum(5.0, nu**-2) / nu**-2,
        "velocity": lambda nu: 1.0 + nu**2,
        "flow": lambda nu: (1.0 + nu) ** 2,
        "denoised": lambda nu: nu**2,
    }
    if weight == "likelihood":
        return  # the test above
    losses = {}
    for own in PARAMETERIZATIONS:
        # All of them the same estimate of the noise: epsilon = 0.3 x.
        def apply(params, scaled, noise, condition, own=own):
            alpha, sigma = params
            x = scaled / expand(PARAMETERIZATIONS[own](alpha, sigma).c_in, scaled)
            return converted(0.3 * x, x, alpha, sigma, "epsilon", own)

        t, _ = sample_times(jax.random.split(jax.random.key(2))[0], sde, 64, LOSSES["paper"], 0.01)
        model = Model((sde.alpha(t), sde.sigma(t)), sde, apply, own, "log_snr")
        losses[own] = denoising_score_matching(
            *(jax.random.key(2), sde, model, x0),
            loss=Pair("uniform", weight),
            error=model.error,
            t_min=0.01,
        )
    z = jax.random.normal(jax.random.split(jax.random.key(2))[1], x0.shape)
    alpha, sigma = (np.asarray(each, np.float64) for each in (sde.alpha(t), sde.sigma(t)))
    error = 0.3 * (alpha[:, None] * x0 + sigma[:, None] * z) - z
    wanted = factors[weight](sigma / alpha) * np.mean(np.square(np.asarray(error)), axis=1)
    for loss in losses.values():
        # Conversions lose 6e-8 sigma / alpha, up to 150, of the data.
        np.testing.assert_allclose(loss, wanted, rtol=1e-3)


def test_edms_loss_is_the_published_one():
    """lambda |D - x0|^2 with lambda = (sigma^2 + s^2) / (sigma s)^2 (Karras et al. 2022, eq. 5 of
    appendix B.6), s = 0.5."""
    sde, s, x0 = EDM(), 0.5, 0.5 * jax.random.normal(jax.random.key(1), (64, 3))
    model = Model(None, sde, lambda _, x, *__: jnp.cos(x), "velocity", "log_sigma", sigma_data=s)
    key = jax.random.key(2)
    found = denoising_score_matching(
        key, sde, model, x0, loss=LOSSES["edm"], error=model.error, t_min=0.002
    )
    key_t, key_z = jax.random.split(key)
    sigma, _ = sample_times(key_t, sde, 64, LOSSES["edm"], 0.002)
    z = jax.random.normal(key_z, x0.shape)
    error = model.denoised(x0 + sigma[:, None] * z, sigma) - x0
    wanted = (sigma**2 + s**2) / (sigma * s) ** 2 * jnp.mean(jnp.square(error), axis=1)
    # D rounds at 1e-7 of x0 where sigma is 0.01 and the error that small, too.
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_edms_networks_get_a_quarter_of_the_logarithm_of_sigma():
    """c_noise = ln(sigma) / 4 (Karras et al. 2022, table 1), through the preset's whole path."""
    small = {"model.width": 8, "model.num_blocks": 1, "model.attention_resolutions": ()}
    config = changed(presets.load("edm_cifar10"), small | {"model.multipliers": (1,)})
    network = build.network(config, describe("cifar10"))(rngs=nnx.Rngs(0))
    sigma = jnp.asarray([0.002, 0.5, 1.0, 80.0])
    noise = build.model(config, lambda *_: None, None).noise(sigma).condition
    c_noise = jnp.asarray([-1.5536520, -0.1732868, 0.0, 1.0955067])
    wanted = np.asarray(jax.nn.silu(network.condition(c_noise)))
    # Sines of such angles, and sums of 32 products of size 1, in float32.
    np.testing.assert_allclose(network._embedding(noise, {}), wanted, rtol=0, atol=1e-5)
    assert np.abs(np.diff(wanted, axis=0)).max(axis=1).min() > 0.01  # they tell levels apart


def test_the_flows_loss_is_finite_at_pure_noise():
    """|output - (z - x0)|^2 at t = T, and its gradient."""
    sde, x0, z = Flow(), jnp.ones((2, 3)), jnp.full((2, 3), 0.5)

    def error(output):
        model = Model(output, sde, lambda output, x, *_: output + 0.0 * x, "flow", "time")
        return jnp.sum(jnp.square(model.error(x0, jnp.ones(2), z, "flow")))

    value, gradient = jax.value_and_grad(error)(jnp.zeros(()))
    np.testing.assert_allclose([value, gradient], [6 * 0.25, 6.0], rtol=1e-6)


# --- Discrete levels ------------------------------------------------------------------------------


def as_published(process, output, z, sigma):
    """The losses as their papers write them, for an example each."""
    if process == "vp":  # DDPM: the network's output is the noise itself
        return np.square(output - z)
    noise = sigma * z  # SMLD: the network's output divided by sigma is the score
    return sigma**2 * np.square(output / sigma + noise / sigma**2)


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_discrete_losses_are_those_of_ddpm_and_smld(process):
    sde, level = PUBLISHED[process], jnp.asarray([0, 17, 99])
    chain = discretization(sde).chain(100)
    x0, z = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    told = []

    def apply(params, x, noise, condition):
        told.append((x, noise))
        return 0.3 * x + 0.1

    model = Model(None, sde, apply, {"vp": "epsilon", "ve": "score"}[process], "time", 100)

    def score(x, level):
        return model.score_at(x, model.at_level(level))

    losses = [level_error(chain, score, x0, level, z, reduce_mean=mean) for mean in (True, False)]
    x, condition = told[0]
    alpha, sigma = (np.asarray(expand(table[level], x0)) for table in chain)
    np.testing.assert_allclose(x, alpha * x0 + sigma * z, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(condition, [0.0, 17.0, 99.0])
    squared = as_published(process, 0.3 * np.asarray(x) + 0.1, np.asarray(z), sigma)
    # Dividing by sigma and multiplying again: a few roundings of 6e-8.
    np.testing.assert_allclose(losses[0], squared.reshape(3, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(losses[1], squared.reshape(3, -1).sum(1) / 2, rtol=1e-5)


def test_levels_are_drawn_evenly_and_none_is_left_out():
    chain, drawn = discretization(PUBLISHED["ve"]).chain(10), []

    def score(x, level):
        drawn.append(np.asarray(level))
        return -x

    for seed in range(20):
        discrete_score_matching(jax.random.key(seed), chain, score, jnp.zeros((32, 2)))
    assert drawn[0].dtype == np.int32
    for levels in drawn:  # 32 evenly spread numbers: 3 or 4 in each tenth
        assert set(np.bincount(levels, minlength=10)) <= {3, 4}
    assert len(np.bincount(np.concatenate(drawn))) == 10
