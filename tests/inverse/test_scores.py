"""The methods' scores, each against its formula in matrices, where the posterior is known exactly.

The data are Gaussian or a mixture. With K = alpha S (alpha^2 S + sigma^2 I)^-1 the denoised data of
a Gaussian N(m, S) are D = m + K (x - alpha m), affine in x, and their covariance is
V = S - alpha K S.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import guidance, inverse, oracle
from score_sde.inverse.base import conjugate_gradients
from score_sde.likelihood import log_likelihood
from score_sde.samplers import DDIM, ProbabilityFlow
from score_sde.schedules import EDM
from score_sde.score import Model
from tests.cases import EVERY, PROCESSES, process_of, thorough

SIGMA_Y = 0.3
TIMES = jnp.asarray([0.02, 0.1, 0.3, 0.6, 0.9])


def problem(dims: int):
    """A Gaussian (mean, covariance), a matrix of a third of the rank, and a measurement for each of
    five states."""
    rng = np.random.default_rng(dims)
    factor = rng.normal(size=(dims, dims)) / np.sqrt(dims)
    covariance = 0.1 * np.eye(dims) + factor @ factor.T
    matrix = rng.normal(size=(max(1, dims // 3), dims)) / np.sqrt(dims)
    y = rng.normal(size=(5, len(matrix)))
    return rng.normal(size=dims), covariance, matrix, y, rng.normal(size=(5, dims))


@jax.jit
def both(posterior, x, t):
    """The score and the denoised data."""
    return posterior(x, t), posterior.denoised(x, t)


def product(matrix, x):
    return jnp.matmul(x, matrix.T, precision="highest")


def floats(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


class Matrices:
    """At one time, in float64: D and K, and the posterior's score."""

    def __init__(self, sde, t, mean, covariance):
        self.alpha, self.sigma = (float(of(t[None])[0]) for of in (sde.alpha, sde.sigma))
        self.mean, self.S = mean, covariance
        of_x = self.alpha**2 * covariance + self.sigma**2 * np.eye(len(mean))
        self.K = self.alpha * covariance @ np.linalg.inv(of_x)
        self.V = covariance - self.alpha * self.K @ covariance

    def denoised(self, x):
        return self.mean + self.K @ (x - self.alpha * self.mean)


def gradient_by(method, at, matrix, y, x):
    """grad log p(y | x_t) as the method takes it."""
    rows, offset = len(matrix), y - matrix @ at.denoised(x)
    if method == "dps":
        return at.K.T @ matrix.T @ offset / SIGMA_Y**2
    r2 = at.sigma**2 / (at.alpha**2 + at.sigma**2)
    spread = {"mmps": at.V, "pigdm": r2 * np.eye(len(x))}.get(method)
    if method == "diffpir":
        r2 = at.sigma**2 / at.alpha**2 / 7.0
        of_y = r2 * matrix @ matrix.T + SIGMA_Y**2 * np.eye(rows)
        return at.alpha / at.sigma**2 * r2 * matrix.T @ np.linalg.solve(of_y, offset)
    of_y = matrix @ spread @ matrix.T + SIGMA_Y**2 * np.eye(rows)
    return at.K.T @ matrix.T @ np.linalg.solve(of_y, offset)


METHODS = {
    "mmps": lambda *a: inverse.mmps(*a, iterations=5),
    "pigdm": inverse.pigdm,
    "dps": lambda *a: inverse.dps(*a, zeta=None),
    "diffpir": inverse.diffpir,
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dims", [16, *thorough(2)])
def test_each_method_is_its_formula(name, dims):
    """Each sample at its own time, with its own measurement."""
    sde, (mean, covariance, matrix, y, x) = process_of(name), problem(dims)
    score = oracle.gaussian(*floats(mean, covariance)).score(sde)
    a_matrix, measured = floats(matrix, y)
    sizes = [Matrices(sde, t, mean, covariance) for t in TIMES]
    x = np.stack([at.alpha * (mean + x0) + at.sigma * x0 for at, x0 in zip(sizes, x, strict=True)])
    for method, make in METHODS.items():
        posterior = make(sde, score, Partial(product, a_matrix), measured, SIGMA_Y)
        found, denoised = both(posterior, *floats(x), TIMES)
        for row, at in enumerate(sizes):
            gradient = gradient_by(method, at, matrix, y[row], x[row])
            x0 = at.denoised(x[row])
            expected = x0 + at.sigma**2 / at.alpha * gradient
            # float32 rounds at some 1e-6 of the states' size, through solves of condition 100.
            size = 2e-4 * max(1.0, np.abs(x[row]).max() / at.alpha)
            np.testing.assert_allclose(denoised[row], expected, atol=size, err_msg=method)
            score_there = (at.alpha * expected - x[row]) / at.sigma**2
            size = size * at.alpha / at.sigma**2
            np.testing.assert_allclose(found[row], score_there, atol=size, err_msg=method)


@pytest.mark.parametrize("name", EVERY)
def test_mmps_is_the_exact_posterior_of_gaussians(name):
    """With as many iterations as measured numbers."""
    sde, (mean, covariance, matrix, y, x) = process_of(name), problem(16)
    prior, (a_matrix, measured) = oracle.gaussian(*floats(mean, covariance)), floats(matrix, y)
    operator = Partial(product, a_matrix)
    posterior = inverse.mmps(sde, prior.score(sde), operator, measured, SIGMA_Y, iterations=5)
    alpha, sigma = sde.alpha(TIMES)[:, None], sde.sigma(TIMES)[:, None]
    x = alpha * jnp.asarray(mean + x, jnp.float32) + sigma * jnp.asarray(x, jnp.float32)
    _, found = both(posterior, x, TIMES)
    for row in range(5):
        exact = prior.given(a_matrix, measured[row], SIGMA_Y).score(sde)
        _, (expected,) = both(exact, x[row : row + 1], TIMES[row : row + 1])
        # As above.
        size = 2e-4 * max(1.0, float(jnp.abs(x[row]).max() / alpha[row, 0]))
        np.testing.assert_allclose(found[row], expected, atol=size)


def test_pigdm_is_exact_for_its_own_gaussian():
    """Data N(0, s^2 I)."""
    sde, (_, _, matrix, y, x) = PROCESSES["vp"], problem(16)
    prior = oracle.gaussian(jnp.zeros(16), 0.25 * jnp.eye(16))
    a_matrix, measured, x = floats(matrix, y[:1], x)
    posterior = inverse.pigdm(
        sde, prior.score(sde), lambda x: x @ a_matrix.T, measured, SIGMA_Y, data_std=0.5
    )
    exact = prior.given(a_matrix, measured[0], SIGMA_Y).score(sde)
    np.testing.assert_allclose(posterior.denoised(x, TIMES), exact.denoised(x, TIMES), atol=1e-4)


@pytest.mark.parametrize("sde", [PROCESSES["vp"], EDM()], ids=["vp", "edm"])
def test_the_published_step_of_dps(sde):
    """x - zeta grad |y - A(D)| in each of 1000 steps, for an operator that is not linear."""
    mean, covariance, _, _, x = problem(2)
    score, (x,) = oracle.gaussian(*floats(mean, covariance)).score(sde), floats(x)
    y = jnp.asarray([[0.3, 0.2]])

    def distance(x, t):
        return jnp.sqrt(jnp.sum(jnp.square(y[0] - jnp.sin(score.denoised(x[None], t[None])[0]))))

    step = jax.vmap(jax.grad(distance))(x, TIMES)
    posterior = inverse.dps(sde, score, jnp.sin, y, 0.0, zeta=0.5)
    beta = sde.T * jnp.square(sde.diffusion(TIMES))[:, None] / 1000
    found = beta * (posterior(x, TIMES) - score(x, TIMES))
    np.testing.assert_allclose(found, -0.5 * step, atol=1e-4)


def test_noise_that_is_traced():
    """The theorem's dps among them, whose noise must not be 0 where it is known."""
    sde, (mean, covariance, *_) = PROCESSES["vp"], problem(2)
    score, (x,) = oracle.gaussian(*floats(mean, covariance)).score(sde), floats(np.ones((5, 2)))
    for method, make in METHODS.items():
        by = jax.jit(
            lambda sigma_y, make=make: make(sde, score, jnp.negative, x, sigma_y)(x, TIMES)
        )
        expected = make(sde, score, jnp.negative, x, 0.3)(x, TIMES)
        # Compiled as a whole, solves round differently.
        np.testing.assert_allclose(by(0.3), expected, rtol=1e-3, atol=1e-3, err_msg=method)


@pytest.mark.thorough
def test_draws_of_mmps_have_the_posteriors_moments():
    """Of 2000 draws; a step's own bias is below 1 per cent with 40 steps of DDIM's noise."""
    sde, (mean, covariance, matrix, y, _) = PROCESSES["vp"], problem(2)
    prior, (a_matrix, measured) = oracle.gaussian(*floats(mean, covariance)), floats(matrix, y[:1])
    posterior = inverse.mmps(sde, prior.score(sde), lambda x: x @ a_matrix.T, measured, SIGMA_Y)
    drawn = DDIM(40, eta=1.0).sample(jax.random.key(0), sde, posterior, shape=(2000, 2))
    assert drawn.nfe.tolist() == [41 * 5] * 2000  # one forth, three and one back
    exact = prior.given(a_matrix, measured[0], SIGMA_Y)
    means, covariances = (np.asarray(each) for each in exact.moments(sde, 1e-5))
    spread = np.sqrt(np.diag(covariances))
    assert np.abs((drawn.x.mean(0) - means) / spread).max() < 4 / np.sqrt(2000) + 0.02
    found = np.cov(np.asarray(drawn.x).T)
    assert np.abs(found - covariances).max() < (4 * np.sqrt(2 / 2000) + 0.04) * spread.max() ** 2


def test_conjugate_gradients_solve_each_row_by_itself():
    """Rows of different sizes, one of them 0; more iterations than needed change nothing."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(3, 4, 4))
    matrices = np.eye(4) + factor @ np.swapaxes(factor, 1, 2)
    b = np.asarray([1e-3, 1.0, 0.0])[:, None] * rng.normal(size=(3, 4))
    apply = lambda u: jnp.einsum("bij,bj->bi", *floats(matrices), u, precision="highest")  # noqa: E731
    for iterations in (4, 20):
        found = conjugate_gradients(apply, *floats(b), iterations)
        expected = np.linalg.solve(matrices, b[..., None])[..., 0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", [inverse.pigdm, inverse.mmps, inverse.dps])
def test_networks_are_asked_for_their_fast_way_back(method):
    """In a sampler's loop that of JAX takes 5 to 10 times as long on CPUs."""
    sde, (x,) = PROCESSES["vp"], floats(np.ones((5, 2)))
    asked = []

    def network(params, x, noise, condition, reverse_only=False):
        asked.append(reverse_only)
        return params["w"] * x

    first, second = (
        Model({"w": jnp.full((), w)}, sde, network, "denoised", "time") for w in (0, 1)
    )
    for score in (first, guidance.autoguidance(sde, first, second, 2.0)):
        method(sde, score, jnp.negative, x, 0.1)(x, TIMES)
        assert all(asked)
        asked.clear()
        score(x, TIMES)
        assert not any(asked)  # the score itself stays one that has a likelihood
        asked.clear()


def test_two_methods_with_as_many_fields_are_two_programs():
    """JAX's registration of dataclasses takes them for one structure (`score.pytree`)."""
    sde, (mean, covariance, *_) = PROCESSES["vp"], problem(2)
    score, (x,) = oracle.gaussian(*floats(mean, covariance)).score(sde), floats(np.ones((5, 2)))
    trees = [
        make(sde, score, jnp.negative, x, 0.1)
        for make in (inverse.pigdm, inverse.diffpir, inverse.mmps, inverse.dps)
    ]
    assert len({jax.tree.structure(tree) for tree in trees}) == 4
    assert len({float(both(tree, x, TIMES)[0].sum()) for tree in trees}) == 4


@pytest.mark.parametrize("name", ["pigdm", "diffpir", "mmps", "dps"])
def test_an_operator_may_add_a_constant(name):
    """y = L x + b tells what y - b = L x does, as with pixels in another range."""
    sde, (mean, covariance, matrix, y, x) = PROCESSES["vp"], problem(4)
    score = oracle.gaussian(*floats(mean, covariance)).score(sde)
    matrix, y, x = floats(matrix, y, x)
    make = getattr(inverse, name)
    plain = make(sde, score, Partial(product, matrix), y, SIGMA_Y)
    moved = make(sde, score, Partial(lambda m, x: product(m, x) + 3.0, matrix), y + 3.0, SIGMA_Y)
    for found, expected in zip(both(moved, x, TIMES), both(plain, x, TIMES), strict=True):
        # Numbers of size 1, or 1 / sigma, lose three bits where 3 is added and taken away.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_mistakes():
    sde, (mean, covariance, *_) = PROCESSES["vp"], problem(2)
    score, (x,) = oracle.gaussian(*floats(mean, covariance)).score(sde), floats(np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"sigma_y = -0.1: allowed are numbers from 0 on"):
        inverse.mmps(sde, score, jnp.negative, x, -0.1)
    for negative in (np.float32(-1.0), jnp.float32(-1.0), np.nan):
        with pytest.raises(ValueError, match=r"sigma_y = .*: allowed are numbers from 0 on"):
            inverse.pigdm(sde, score, jnp.negative, x, negative)
    with pytest.raises(ValueError, match=r"sigma_y = .*0.*: allowed are numbers above 0"):
        inverse.mmps(sde, score, jnp.negative, x, np.float32(0))
    with pytest.raises(ValueError, match=r"sigma_y = 0: allowed are numbers above 0"):
        inverse.dps(sde, score, jnp.negative, x, 0, zeta=None)
    for make, name, value in (
        (inverse.dps, "zeta", -1.0),
        (inverse.pigdm, "data_std", 0.0),
        (inverse.pigdm, "iterations", 0),
        (inverse.diffpir, "iterations", 0),
        (inverse.diffpir, "strength", 0.0),
    ):
        with pytest.raises(ValueError, match=rf"{name} = {value}: allowed are "):
            make(sde, score, jnp.negative, x, 0.1, **{name: value})
    with pytest.raises(ValueError, match=r"sigma_y = .*: allowed are numbers from 0 on"):
        inverse.pigdm(sde, score, jnp.negative, x, np.ones(5))
    with pytest.raises(ValueError, match=r"y.shape = \(2,\): allowed are \(5, 2\).*\(1, 2\)"):
        inverse.pigdm(sde, score, jnp.negative, x[0], 0.1)(x, TIMES)
    for curved in (jnp.sin, jnp.square, lambda x: x * x, lambda x: x / jnp.sum(x)):
        with pytest.raises(ValueError, match=r"operator: .*allowed are linear ones, except with d"):
            inverse.pigdm(sde, score, curved, x, 0.1)(x, TIMES)
    with pytest.raises(ZeroDivisionError):  # the operator's own
        inverse.pigdm(sde, score, lambda x: x * (1 / 0), x, 0.1)(x, TIMES)
    fourier, parts = jnp.fft.fft(x), lambda x: jnp.real(jnp.fft.fft(x))
    with pytest.raises(ValueError, match=r"operator\(x\) = 'complex64 .*real and imaginary parts"):
        inverse.pigdm(sde, score, jnp.fft.fft, fourier, 0.1)(x, TIMES)
    with pytest.raises(ValueError, match=r"y.dtype = 'complex64': allowed are real numbers"):
        inverse.pigdm(sde, score, jnp.negative, fourier, 0.1)(x, TIMES)
    for wrong in (lambda x: (x, x), lambda x: x.astype(int), lambda x: x[0], jnp.sum):
        with pytest.raises(ValueError, match=r"operator\(x\) = .*: allowed are arrays \(5, ...\)"):
            inverse.pigdm(sde, score, wrong, x, 0.1)(x, TIMES)
    assert inverse.pigdm(sde, score, parts, parts(x), 0.1)(x, TIMES).shape == x.shape
    with pytest.raises(ValueError, match=r"project = None: allowed are projections, such as"):
        inverse.RePaint(3).sample(jax.random.key(0), sde, score, shape=(5, 2))
    with pytest.raises(ValueError, match=r"iterations = 0: allowed are numbers above 0"):
        inverse.replacement(sde, score, jnp.negative, x, iterations=0)
    project = inverse.replacement(sde, score, lambda x: (x, x), x)
    with pytest.raises(ValueError, match=r"operator\(x\) = 'tuple': allowed are arrays"):
        DDIM(2).sample(jax.random.key(0), sde, score, shape=(5, 2), project=project)
    posterior = inverse.mmps(sde, score, jnp.negative, x, 0.1)
    with pytest.raises(ValueError, match=r"score: the approximate score of a posterior"):
        log_likelihood(jax.random.key(0), sde, posterior, x)
    flow = ProbabilityFlow(solver="euler", num_steps=3)
    assert flow.sample(jax.random.key(0), sde, posterior, shape=(5, 2)).nfe.tolist() == [20] * 5
