"""Replacement: the original's inpainter and colorizer written once more, and the projection.

The original is score_sde's controllable_generation.py (Song et al. 2021, appendix I), with the
samplers of its VP and VE configurations: reverse diffusion or Euler-Maruyama, and Langevin.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import inverse, oracle
from score_sde.inverse import operators
from score_sde.samplers import DDIM, PredictorCorrector
from score_sde.samplers.base import from_prior
from score_sde.samplers.stepped import PROJECTION
from score_sde.sde import VESDE, VPSDE
from score_sde.spaces import item_keys
from tests.cases import thorough
from tests.commands import as_users_have_it

N, SHAPE, SNR = 30, (2, 4, 4, 3), 0.16
KEY = jax.random.key(3)
# An orthogonal change of colours with grey first. The original's has the same first column, and is
# orthogonal to 1e-7; the other two play no part.
M = np.linalg.qr(np.stack([np.ones(3), [-1.0, 0.5, 0.5], [0.0, 1.0, -1.0]], axis=1))[0]
M[:, 0] = np.sqrt(1 / 3)


class Original:
    """The sampler's level in float64, from the formulas; for data N(0.3, 0.5^2)."""

    def __init__(self, name, predictor):
        self.name, self.predictor = name, predictor
        self.times = np.linspace(1.0, 1e-5 if name == "ve" else 1e-3, N)
        self.betas = np.linspace(0.1 / N, 20.0 / N, N)  # of VP's chain
        self.sigmas = np.exp(np.linspace(np.log(0.01), np.log(50.0), N))  # of VE's

    def marginal(self, t):
        if self.name == "ve":
            return 1.0, 0.01 * 5000.0**t
        log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
        return np.exp(log_mean), np.sqrt(1.0 - np.exp(2.0 * log_mean))

    def score(self, x, t):
        alpha, sigma = self.marginal(t)
        return -(x - 0.3 * alpha) / ((0.5 * alpha) ** 2 + sigma**2)

    def step(self, i):
        """(factor of x, G, the corrector's alpha)."""
        row = int(np.float32(self.times[i]) * np.float32(N - 1))
        if self.name == "ve":
            below = self.sigmas[row - 1] if row else 0.0
            return 1.0, np.sqrt(self.sigmas[row] ** 2 - below**2), 1.0
        beta = self.betas[row]
        return 2.0 - np.sqrt(1.0 - beta), np.sqrt(beta), 1.0 - beta

    def corrected(self, x, i, z):
        gradient, (_, _, alpha) = self.score(x, self.times[i]), self.step(i)
        norms = [np.linalg.norm(a.reshape(len(a), -1), axis=1).mean() for a in (z, gradient)]
        size = 2.0 * alpha * (SNR * norms[0] / norms[1]) ** 2
        return x + size * gradient + np.sqrt(2.0 * size) * z

    def predicted(self, x, i, z):
        """The next state and its mean."""
        factor, G, _ = self.step(i)
        if self.predictor == "euler_maruyama":
            t = self.times[i]
            beta = 0.1 + 19.9 * t
            factor = 1.0 if self.name == "ve" else 1.0 + 0.5 * beta / N
            g2 = 2.0 * np.log(5000.0) * self.marginal(t)[1] ** 2 if self.name == "ve" else beta
            G = np.sqrt(g2 / N)
        mean = factor * x + G**2 * self.score(x, self.times[i])
        return mean + G * z, mean


def draw(index):
    keys = item_keys(KEY, SHAPE[0], 0)
    fold = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), SHAPE[1:], float))
    return np.asarray(fold(keys))


def draw_of_projection(index):
    def one(key):
        key = jax.random.fold_in(jax.random.fold_in(key, PROJECTION), index)
        return jax.random.normal(key, SHAPE[1:], float)

    return np.asarray(jax.vmap(one)(item_keys(KEY, SHAPE[0], 0)))


def original(name, predictor, data, mask, x, decouple, couple):
    """Known is where the mask is 1, after the change of colours."""
    level = Original(name, predictor)

    def known(x, mean, t, z):
        """The state and its mean with the known part. (The mean takes its rest from the state.)"""
        alpha, sigma = level.marginal(t)
        noisy = alpha * decouple(data) + sigma * decouple(z)
        x = couple(decouple(x) * (1 - mask) + noisy * mask)
        return x, couple(decouple(x) * (1 - mask) + alpha * decouple(data) * mask)

    mean = x
    for i, t in enumerate(level.times):
        x = level.corrected(x, i, draw(1 + 2 * i))
        x, mean = known(x, mean, t, draw_of_projection(2 * i))
        x, mean = level.predicted(x, i, draw(2 + 2 * i))
        x, mean = known(x, mean, t, draw_of_projection(2 * i + 1))
    return x, mean


@pytest.mark.parametrize("name", ["vp", *thorough("ve")])
@pytest.mark.parametrize(
    ("task", "predictor"),
    [
        ("inpaint", "reverse_diffusion"),
        *thorough(("inpaint", "euler_maruyama"), ("colorize", "reverse_diffusion")),
    ],
)
def test_faithful_is_the_originals_algorithm(name, task, predictor):
    """In float64, with the same noise. The original draws the noise of grey in the changed colours,
    which is the same in law."""
    with as_users_have_it(), jax.enable_x64(True):
        sde = {"vp": VPSDE(), "ve": VESDE()}[name]
        rng = np.random.default_rng(0)
        data = rng.normal(size=SHAPE)
        start = np.asarray(from_prior(KEY, sde, SHAPE))
        if task == "inpaint":
            mask = np.zeros((4, 4, 1))
            mask[:, :2] = 1.0
            same = lambda x: x  # noqa: E731
            changes, operator = (same, same), operators.inpaint(jnp.asarray(mask))
            x_init = data * mask + start * (1 - mask)
        else:
            data = np.repeat(data[..., :1], 3, axis=-1)  # a grey image
            mask = np.asarray([1.0, 0.0, 0.0])
            changes, operator = (lambda x: x @ M, lambda x: x @ M.T), operators.colorize()
            x_init = changes[1](
                changes[0](data) * mask + changes[0](start * (1 - np.asarray([1.0, 0, 0])))
            )
        expected = original(name, predictor, data, mask, x_init, *changes)
        y = operator(jnp.asarray(data))

        def score(x, t):
            alpha, sigma = (of(t)[:, None, None, None] for of in (sde.alpha, sde.sigma))
            return -(x - 0.3 * alpha) / ((0.5 * alpha) ** 2 + sigma**2)

        project = inverse.replacement(sde, score, operator, y)
        for denoise, truth in zip((False, True), expected, strict=True):
            sampler = PredictorCorrector(
                N, predictor, "langevin", snr=SNR, faithful=True, denoise=denoise
            )
            drawn = sampler.sample(KEY, sde, score, jnp.asarray(x_init), project=project)
            # The states of VE are of size 50.
            size = np.abs(truth).max()
            np.testing.assert_allclose(drawn.x, truth, rtol=0, atol=1e-8 * max(1.0, size))


@pytest.mark.thorough
def test_the_projection_sets_the_measured_part_alone():
    """alpha y + sigma A z there, the state elsewhere; z is each sample's own."""
    sde, mask = VPSDE(), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    operator = operators.inpaint(mask)
    rows = 4000
    x = jax.random.normal(jax.random.key(0), (rows, 2, 2, 1))
    y, t = operator(jnp.full((1, 2, 2, 1), 0.7)), jnp.full(rows, 0.3)
    keys = jax.random.split(jax.random.key(1), rows)
    for sigma_y in (0.0, 0.2):
        project = inverse.replacement(sde, None, operator, y, sigma_y)
        found = np.asarray(project(x, t, keys))
        np.testing.assert_array_equal(found[:, 0, 1], x[:, 0, 1])
        alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
        std = np.sqrt(sigma**2 - (alpha * sigma_y) ** 2)
        known = found[:, [0, 1], [0, 1], 0] - alpha * 0.7
        assert abs(known.mean()) < 4 * std / np.sqrt(2 * rows)
        assert abs(known.std() / std - 1) < 4 / np.sqrt(4 * rows)
    # Where the measurement is noisier than the state, the state stays.
    noisy = inverse.replacement(sde, None, operator, y, 5.0)
    np.testing.assert_array_equal(noisy(x, t, keys), x)


def by_svd(sde, x, y, z, t, matrix, sigma_y):
    """The projection, in float64: along each singular vector by itself; and what it leaves."""
    u, s, v = np.linalg.svd(np.float64(matrix), full_matrices=False)
    alpha, sigma = (np.float64(of(t))[:, None] for of in (sde.alpha, sde.sigma))
    left = sigma**2 - (alpha * sigma_y / s) ** 2
    target = alpha * (y @ u) / s + np.sqrt(np.maximum(left, 0)) * (z @ v.T)
    stays = left < 0
    return x + np.where(stays, 0, target - x @ v.T) @ v, stays, v


@pytest.mark.parametrize("constant", [0.0, 2.0])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_noise_is_set_along_singular_vectors(sigma_y, constant):
    """A matrix of five singular values from 0.2 to 2. At these times all, some and none of them
    tell more than the state has."""
    rng, sde = np.random.default_rng(1), VPSDE()
    s = np.asarray([0.2, 0.5, 1.0, 1.5, 2.0])
    matrix = (
        np.linalg.qr(rng.normal(size=(5, 5)))[0] * s @ np.linalg.qr(rng.normal(size=(8, 5)))[0].T
    )
    x, y, before = rng.normal(size=(3, 8)), rng.normal(size=(3, 5)), rng.normal(size=(3, 8))
    t, keys = jnp.asarray([0.02, 0.1, 0.8]), jax.random.split(jax.random.key(2), 3)

    def operator(x):
        return jnp.matmul(x, jnp.asarray(matrix.T, x.dtype), precision="highest") + constant

    measured = jnp.asarray(y + constant, jnp.float32)
    project = inverse.replacement(sde, None, operator, measured, sigma_y, iterations=8)
    z = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys))
    expected, stays, v = by_svd(sde, x, y, z, t, matrix, sigma_y)
    assert stays.sum(axis=1).tolist() == ([0, 0, 0] if sigma_y == 0 else [5, 2, 0])
    x, before = jnp.asarray(x, jnp.float32), jnp.asarray(before, jnp.float32)
    # Rounding of numbers of size 10, as y / 0.2 is, and of a matrix of the condition 100.
    np.testing.assert_allclose(project(x, t, keys), expected, rtol=0, atol=1e-3)
    held = x + np.where(stays, np.asarray(before - x) @ v.T, 0) @ v
    np.testing.assert_allclose(project.held(x, before, t), held, rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [DDIM, *thorough(inverse.RePaint)])
def test_noisy_means_of_independent_pixels_are_drawn_exactly(make):
    """Four pixels N(0, 1), and their mean measured as 1 with noise of 0.2. For independent data the
    projection is exact: the mean has mean 1 / (1 + 0.04 / 0.25) = 0.862 and deviation 0.186, the
    rest is as before. 2000 draws have errors of 0.004 and 0.003, and the level at which the
    measurement is left is met to a step of 100. These steps draw deviations that are too small, by
    1 % here, and RePaint makes each three times.
    """
    sde, operator = VPSDE(), operators.super_resolve(2)
    prior = oracle.gaussian(jnp.zeros(4), jnp.eye(4))
    score = prior.score(sde)

    def of_images(x, t):
        return score(x.reshape(len(x), 4), t).reshape(x.shape)

    project = inverse.replacement(sde, None, operator, jnp.ones((1, 1, 1, 1)), 0.2)
    sampler = make(100, eta=1.0) if make is DDIM else make(100, resamplings=3)
    x = sampler.sample(KEY, sde, of_images, shape=(2000, 2, 2, 1), project=project).x
    means = np.asarray(operator(x)).ravel()
    assert abs(means.mean() - 0.862) < 0.02 and abs(means.std() - 0.186) < 0.015
    rest = np.asarray(x - means[:, None, None, None]).std() / np.sqrt(0.75)
    assert abs(rest - 1) < (0.02 if make is DDIM else 0.05)


def test_a_blur_needs_iterations():
    """A x = y without noise, for an operator whose A A^T is no multiple of a projection."""
    sde, operator = VPSDE(), operators.deblur(operators.gaussian_kernel(0.5, 3))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    y, t = operator(jax.random.normal(jax.random.key(1), (2, 4, 4, 1))), jnp.full(2, 0.3)
    missing = []
    for iterations in (1, 30):
        project = inverse.replacement(sde, None, operator, y, iterations=iterations)
        offset = operator(project.mean(x, t)) - sde.alpha(t)[:, None, None, None] * y
        missing.append(float(jnp.abs(offset).max()))
    assert missing[1] < 1e-4 < missing[0]


@pytest.mark.thorough
def test_resampling_mends_what_replacement_misses():
    """Two pixels of correlation 0.9, one of them known to be 1.5: the other has mean 1.35 and
    variance 0.19. By replacement it learns of the known one too late; RePaint makes each step ten
    times. Its error over 500 draws is 0.02, and a step's own bias is a few per cent.
    """
    sde = VPSDE()
    prior = oracle.gaussian(jnp.zeros(2), jnp.asarray([[1.0, 0.9], [0.9, 1.0]]))
    project = inverse.replacement(sde, None, lambda x: x[:, :1], jnp.asarray([[1.5]]))
    means = []
    for sampler, nfe in ((DDIM(50, eta=1.0), 51), (inverse.RePaint(50), 501)):
        sampler = replace(sampler, denoise=False)
        drawn = sampler.sample(KEY, sde, prior.score(sde), shape=(500, 2), project=project)
        last = float(sde.sigma(jnp.asarray([1e-3]))[0])
        np.testing.assert_allclose(drawn.x[:, 0], 1.5, atol=5 * last)
        assert drawn.nfe.tolist() == [nfe - 1] * 500
        means.append(float(drawn.x[:, 1].mean()))
    assert means[0] < 1.1 and abs(means[1] - 1.35) < 0.1
