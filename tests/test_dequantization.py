"""Likelihoods of pixels by dequantization against exact ones, and the spread over probes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import oracle
from score_sde.likelihood import _probe_error, data_log_likelihood
from score_sde.spaces import Pixels
from tests.cases import PUBLISHED, overlapping_mixture, thorough

LEVELS, COPIES, DRAWS = 5, 64, 16
ONE_PIXEL = (1, 1, 1)


def end(mixture, sde, x, t):
    """The oracle's own density at T, so that nothing but the method is left. Bound by Partial: a
    new function would be compiled anew."""
    return mixture.log_prob(sde, x, t)


def probability(mixture, sde, t_min, low, high):
    """Exact probability of [low, high] under a 1-D mixture at t_min, by the normal distribution
    function in float64."""
    t = jnp.full(1, t_min)
    alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    total = 0.0
    for k in range(len(mixture.means)):
        std = math.sqrt(alpha**2 * float(mixture.variances[k, 0]) + sigma**2)
        z = [(edge - alpha * float(mixture.means[k, 0])) / std for edge in (low, high)]
        share = 0.5 * (math.erf(z[1] / math.sqrt(2)) - math.erf(z[0] / math.sqrt(2)))
        total += math.exp(float(mixture.log_weights[k])) * share
    return total


# Noise at t_min as wide as a bin, so that the draws reach all of it and many of them find P; the
# narrow one of a trained model is in the next test.
CASES = {
    "uniform": ("vp", "uniform", Pixels(ONE_PIXEL, LEVELS, True, True), 1e-5),
    "truncated, pixels as they are": (
        *("vp", "truncated_normal"),
        *(Pixels(ONE_PIXEL, LEVELS, True, False), 5e-2),
    ),
    # The next test has such pixels, too.
    "truncated, in [0, 1]": pytest.param(
        ("ve", "truncated_normal", Pixels(ONE_PIXEL, LEVELS, False, False), 0.3),
        marks=pytest.mark.thorough,
    ),
    "truncated, dequantized": (
        *("vp", "truncated_normal"),
        *(Pixels(ONE_PIXEL, LEVELS, True, True), 5e-2),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_bound_tightens_in_the_number_of_draws(case):
    """One pixel, whose probability is known: the bound is below it, above that of fewer draws, and
    with all draws of all copies of the image in one mean it is the probability."""
    name, dequantization, pixels, t_min = case
    sde = PUBLISHED[name]
    mixture = oracle.gaussian_mixture(
        jnp.asarray([0.4, 0.6]),
        jnp.asarray([[-0.3], [0.5]]) * (1.0 if pixels.centered else 0.5),
        jnp.full((2, 1, 1), 0.01),
    )
    images = jnp.repeat(jnp.arange(LEVELS, dtype=jnp.uint8), COPIES).reshape(-1, 1, 1, 1)
    values = data_log_likelihood(
        jax.random.key(0),
        sde,
        mixture.score(sde),
        images,
        pixels,
        dequantization=dequantization,
        num_importance=DRAWS,
        t_min=t_min,
        divergence="exact",
        terminal_log_prob=Partial(end, mixture, sde),
    )
    scale, bins = 2.0 if pixels.centered else 1.0, LEVELS if pixels.dequantize else LEVELS - 1
    middles = (np.arange(LEVELS) + 0.5 * pixels.dequantize) / bins * scale - (scale - 1.0)
    alpha = float(sde.alpha(jnp.full(1, t_min))[0]) if "normal" in dequantization else 1.0
    exact = np.asarray(
        [
            probability(
                mixture, sde, t_min, *(alpha * (middle + np.asarray([-0.5, 0.5]) * scale / bins))
            )
            for middle in middles
        ]
    )
    weights = np.asarray(values.log_weight, np.float64).reshape(LEVELS, COPIES, DRAWS)

    def bound(number):
        grouped = weights.reshape(LEVELS, -1, number)
        return np.log(np.exp(grouped).mean(-1))

    means = {number: bound(number).mean() for number in (1, 4, 16)}
    errors = {n: bound(n).std(1).mean() / np.sqrt(bound(n).size) for n in means}
    # The code's own bound is that of all draws of an image.
    ours = -np.asarray(values.bits_per_dim).reshape(LEVELS, COPIES) * np.log(2)
    np.testing.assert_allclose(ours, bound(DRAWS)[:, :], rtol=1e-4, atol=1e-5)
    assert means[1] < means[4] < means[16] < np.log(exact).mean() + 3 * errors[16]
    # Less than a quarter of the loss is left: it falls as 1 / K where K is large.
    assert np.log(exact).mean() - means[16] < 0.25 * (np.log(exact).mean() - means[1])
    # 1024 draws: their mean is P within 4 standard errors (of 5 levels), and the solver's 1e-3.
    ratio = np.exp(weights).reshape(LEVELS, -1) / exact[:, None]
    error = ratio.std(1) / np.sqrt(ratio.shape[1])
    assert (np.abs(ratio.mean(1) - 1.0) < 4 * error + 1e-3).all()
    assert (values.nfe >= DRAWS).all() and values.probe_error is None


@pytest.mark.parametrize(
    ("name", "centered", "levels", "t_min"),
    [
        ("ve", False, 256, 1e-5),
        *thorough(("vp", True, 17, 1e-5), ("vp", False, 256, 1e-5), ("subvp", True, 256, 1e-3)),
    ],
)
def test_truncated_normal_is_tight_for_data_that_are_not_dequantized(name, centered, levels, t_min):
    """Three images of known probability are all the data: the density at t_min is then q in each
    cell, up to the part Z that lies in the cell, and one draw gives log P = log share + D log Z."""
    sde, pixels, copies = PUBLISHED[name], Pixels((2, 2, 1), levels, centered, False), 32
    three = jax.random.randint(jax.random.key(0), (3, 2, 2, 1), 0, levels).astype(jnp.uint8)
    shares = jnp.asarray([0.2, 0.3, 0.5])
    points = pixels.to_model(three).reshape(3, 4)
    data = oracle.gaussian_mixture(shares, points, jnp.zeros((3, 4, 4)))

    def bound(dequantization):
        values = data_log_likelihood(
            jax.random.key(1),
            sde,
            data.score(sde),
            jnp.repeat(three, copies, axis=0),
            pixels,
            dequantization=dequantization,
            t_min=t_min,
            divergence="exact",
            terminal_log_prob=Partial(end, data, sde),
        )
        return -values.bits_per_dim.reshape(3, copies) * 4 * np.log(2)

    t = jnp.full(1, t_min)
    tau = (2.0 if centered else 1.0) / (levels - 1) / 2 * float(sde.alpha(t)[0] / sde.sigma(t)[0])
    exact = np.log(shares) + 4 * math.log(math.erf(tau / math.sqrt(2)))
    ours = np.asarray(bound("truncated_normal"))
    # The solver, 1e-3 nats/dim by design, at the hardest data there are: points.
    np.testing.assert_allclose(ours.mean(1), exact, rtol=0, atol=4e-3)
    np.testing.assert_allclose(ours, np.repeat(exact[:, None], copies, 1), rtol=0, atol=4e-2)
    if tau > 10:
        # Uniform draws lie where there is no density: useless, by more than a bit for each pixel.
        assert np.asarray(bound("uniform")).mean() < exact.mean() - 4 * np.log(2)


@pytest.mark.parametrize("tau", [0.1, 1.0, 60.0])
@pytest.mark.parametrize("dequantize", [True, False])
def test_truncated_draws_stay_in_their_bins_and_have_the_density_they_say(tau, dequantize):
    pixels, alpha = Pixels((16, 16, 1), 17, True, dequantize), 0.9
    width = 2.0 / (17 if dequantize else 16)
    sigma = jnp.asarray(0.5 * alpha * width / tau)
    images = jnp.full((40, 16, 16, 1), 16, jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 40)
    x, log_density = pixels.dequantized(keys, images, "truncated_normal", jnp.asarray(alpha), sigma)
    middle = 1.0 - (0.5 * width if dequantize else 0.0)
    z = (np.asarray(x, np.float64) - alpha * middle) / float(sigma)
    # Rounding of x in float32, in units of sigma.
    assert np.abs(z).max() <= tau + 1e-6 / float(sigma) and np.isfinite(log_density).all()
    inside = math.erf(tau / math.sqrt(2))
    variance = 1 - 2 * tau * math.exp(-0.5 * tau**2) / math.sqrt(2 * math.pi) / inside
    # Four standard errors, at most those of a normal distribution.
    assert abs(z.mean()) < 4 * math.sqrt(variance / z.size)
    assert abs(z.var() / variance - 1) < 4 * math.sqrt(2 / z.size)
    density = -0.5 * z**2 - math.log(float(sigma) * math.sqrt(2 * math.pi) * inside)
    np.testing.assert_allclose(log_density, density.sum((1, 2, 3)), rtol=1e-4)


@pytest.fixture(scope="module")
def images_of_a_mixture():
    """Images of 2 x 2 pixels of 17 levels, drawn from a mixture, and bounds of their likelihood."""
    sde, mixture = PUBLISHED["vp"], overlapping_mixture(4)
    pixels = Pixels((2, 2, 1), 17, True, True)
    x0 = mixture.sample(jax.random.key(0), 256).reshape(-1, 2, 2, 1)
    images = pixels.from_model(x0)

    def values(images=images, **settings):
        return data_log_likelihood(
            jax.random.key(1), sde, mixture.score(sde), images, pixels, **settings
        )

    return images, values


@pytest.mark.thorough
def test_the_error_over_probes_is_the_probes_error(images_of_a_mixture):
    _, values = images_of_a_mixture
    exact, eight = values(divergence="exact"), values(num_probes=8)
    assert exact.probe_error is None
    error = np.asarray(eight.bits_per_dim - exact.bits_per_dim, np.float64)
    spread = np.asarray(eight.probe_error, np.float64)
    # Both squares estimate the same variances. Their sums over 256 images scatter by some 10 %.
    assert 0.65 < np.square(error).sum() / np.square(spread).sum() < 1.4
    # Of the mean: independent probes. The solver's part is some 1e-4.
    assert abs(error.mean()) < 3 * np.sqrt(np.square(spread).sum()) / len(spread) + 2e-4


def test_the_error_over_two_probes_is_half_their_difference():
    """Std with ddof 1, over sqrt(2)."""
    log_prob = np.asarray([[[1.0, 4.0]], [[-2.0, -2.0]]], np.float32)  # (B, K, probes)
    error = _probe_error(
        jnp.asarray(log_prob), jnp.zeros((2, 1)), Pixels((1, 3, 1), 2, False, True)
    )
    np.testing.assert_allclose(error, [1.5 / (3 * np.log(2.0)), 0.0], rtol=1e-6)


@pytest.mark.thorough
def test_the_draws_of_an_image_share_its_probes(images_of_a_mixture):
    """With probes of their own the noise of log p would raise a bound of 8 draws within the
    logarithm by a good part of half its variance; shared, it averages out."""
    _, values = images_of_a_mixture
    exact = values(divergence="exact", num_importance=8)
    noisy = values(num_importance=8)
    difference = np.asarray(noisy.bits_per_dim - exact.bits_per_dim, np.float64)
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference)) + 2e-4
    alone = np.asarray(values().log_weight[:, 0])
    np.testing.assert_array_equal(noisy.log_weight[:, 0], alone)  # the first draw whatever K


def test_an_images_draws_depend_on_its_index_alone(images_of_a_mixture):
    images, values = images_of_a_mixture
    whole = values(num_importance=2)
    # A batch of the same size, so that nothing is compiled for it: bit for bit.
    part = values(jnp.roll(images, -100, axis=0), num_importance=2, first=100)
    np.testing.assert_array_equal(part.log_weight[:156], whole.log_weight[100:])
    assert np.abs(whole.log_weight[:, 0] - whole.log_weight[:, 1]).min() > 0


def test_settings_that_do_not_exist_are_refused(images_of_a_mixture):
    _, values = images_of_a_mixture
    with pytest.raises(ValueError, match="'normal': allowed are uniform, truncated_normal"):
        values(dequantization="normal")
    with pytest.raises(ValueError, match="num_importance = 0: allowed are integers of at least 1"):
        values(num_importance=0)
