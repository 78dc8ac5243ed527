"""Every sampler under every process against the exact distribution at the end of its run.

The bias of a step is measured without noise: for a one-dimensional Gaussian each step is affine in
state and noise, so mean and variance follow by recursion from three evaluations. The Monte Carlo
test then runs the whole samplers.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracle
from score_sde.samplers import AnnealedLangevin, Heun, PredictorCorrector, ProbabilityFlow
from score_sde.schedules import Cosine, Flow, Sigmoid
from score_sde.score import pytree
from score_sde.sde import SDE, VESDE
from tests.cases import (
    EVERY,
    FIRST,
    LATER,
    PROCESSES,
    SAMPLER_CASES,
    VP_FIRST,
    overlapping_mixture,
    process_of,
    thorough,
)

DIMS, NUM = 16, 4096


@partial(jax.jit, static_argnums=0)
def affine_steps(sampler, sde, truth):
    """Of each step its end at x = 0, at x = 1 and at each noise of 1, (steps, 2 + draws)."""
    times, score, draws = sampler.times(sde), truth.score(sde), sampler.corrections + 1
    z = jnp.zeros((draws, draws + 2, 1))
    z = z.at[jnp.arange(draws), jnp.arange(draws) + 2, 0].set(1.0)
    x = jnp.zeros((draws + 2, 1)).at[1, 0].set(1.0)

    def affine(t, s):
        t, s = jnp.full(draws + 2, t), jnp.full(draws + 2, s)
        return sampler.level(sde, score, x, t, s, z)[0][:, 0]

    return jax.vmap(affine)(times[:-1], times[1:])


def moments_after(sampler, sde, mean: float, variance: float) -> tuple[float, float]:
    """Exact mean and variance that the sampler ends with, for data N(mean, variance) and its exact
    score."""
    truth = oracle.gaussian(jnp.asarray([mean]), jnp.asarray([[variance]]))
    m, v = 0.0, float(sde.prior_std()) ** 2
    for offset, at_one, *at_noise in np.asarray(affine_steps(sampler, sde, truth), np.float64):
        m = offset + (at_one - offset) * m
        v = (at_one - offset) ** 2 * v + sum((a - offset) ** 2 for a in at_noise)
    return m, v


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion", "ancestral"])
def test_bias_halves_when_steps_double(name, predictor):
    sde = process_of(name)
    t_min = 0.01  # where 1 / N is well below the time scale of the process
    t = jnp.full(1, t_min)
    alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    errors = []
    for num_steps in (400, 800):
        sampler = PredictorCorrector(num_steps, predictor, denoise=False, t_min=t_min)
        mean, variance = moments_after(sampler, sde, 0.7, 0.25)
        errors.append((abs(mean - alpha * 0.7), abs(variance / (alpha**2 * 0.25 + sigma**2) - 1)))
    # The prior's mismatch at T and float32's rounding over the steps, both below 1e-3, do not
    # shrink.
    for (mean, variance), (finer_mean, finer_variance) in pairwise(errors):
        assert finer_variance < 0.6 * variance + 1e-3
        assert finer_mean < 0.6 * mean + 1e-3
    assert errors[0][1] < 20 / 400  # the bound that the Monte Carlo test grants


@partial(jax.jit, static_argnums=0)
def levels(sampler, sde):
    """Alpha and sigma of annealed Langevin's levels, its step size and the prior's std."""
    t = sampler.level_times(sde)
    return sde.alpha(t), sde.sigma(t), sampler.step_length(sde), sde.prior_std()


def annealed_langevin_error(sampler, sde, data_variance: float) -> float:
    """The recursion of algorithm 1 for N(0.7, data_variance) and its exact score, written a second
    time: the larger relative error of mean and variance at the end."""
    alphas, sigmas, *numbers = (np.asarray(a, float) for a in levels(sampler, sde))
    step_size, prior_std = (float(number) for number in numbers)
    m, v = 0.0, prior_std**2
    noises = sigmas / alphas
    for level, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        rescaling = alpha / alphas[max(level - 1, 0)]
        m, v = m * rescaling, v * rescaling**2
        variance = alpha**2 * data_variance + sigma**2
        for repeat in range(sampler.steps_per_level):
            kept = 1.0  # of the noise, to the next step
            if repeat == sampler.steps_per_level - 1 and level < len(noises) - 1:
                kept = noises[level + 1] / noises[level]
            e = step_size
            if sampler.consistent:
                e = max(e, 1 - kept)
                noise = kept**2 - (1 - e) ** 2
            else:
                noise = 2 * e
            slope = e * sigma**2 / variance
            m += slope * (alpha * 0.7 - m)
            v = (1 - slope) ** 2 * v + noise * sigma**2
    return max(abs(m - alpha * 0.7) / np.sqrt(variance), abs(v / variance - 1))


@pytest.mark.parametrize("name", EVERY)
def test_consistent_annealed_langevin_loses_half_its_step_size_of_the_variance(name):
    """A narrow direction of the data keeps its variance, a wide one loses step_size / 2 of it,
    whatever the number of levels and of steps."""
    sde = process_of(name)
    for num_levels, steps_per_level, step_size in (
        (50, 1, 0.1),
        (200, 2, 0.1),
        (400, 1, 0.1),
        (400, 1, 0.05),
    ):
        sampler = AnnealedLangevin(num_levels, steps_per_level, step_size)
        alphas, sigmas, *_ = levels(sampler, sde)
        noises = np.asarray(sigmas / alphas)
        largest = max(step_size, 1 - (noises[1:] / noises[:-1]).min())  # where levels are far apart
        for data_variance in (1e-4, 0.04, 0.25, 1.0):
            # To first order e / 2; the second order is e^2 / 4 and less, for e <= 0.3. The prior
            # lacks what is left of the data's variance at T, 0.003 of sigmoid's here.
            left = (
                alphas[0] ** 2 * data_variance / (alphas[0] ** 2 * data_variance + sigmas[0] ** 2)
            )
            bound = largest / 2 + largest**2 / 4 + left
            assert annealed_langevin_error(sampler, sde, data_variance) < bound


@pytest.mark.parametrize("name", EVERY)
def test_the_papers_annealed_langevin_bias_shrinks_with_levels_and_step_size(name):
    def error(num_steps, step_size):
        sampler = AnnealedLangevin(num_steps, 5, step_size, consistent=False, t_min=0.01)
        return annealed_langevin_error(sampler, process_of(name), 0.25)

    coarse, middle, fine = error(200, 0.1), error(400, 0.1), error(800, 0.05)
    assert fine < middle < coarse
    assert fine < 0.5 * coarse


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(DIMS)


@pytest.fixture(scope="module")
def directions(mixture):
    """Between the modes, and three at random: (D, 4), orthonormal."""
    between = np.asarray(mixture.means[0] - mixture.means[1])[:, None]
    others = np.random.default_rng(0).normal(size=(DIMS, 3))
    return np.linalg.qr(np.concatenate([between, others], axis=1))[0]


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})
def many(sampler, sde, score):
    """NUM samples; enough work for optimized code (tests/conftest.py) to pay."""
    return sampler.sample(jax.random.key(0), sde, score, shape=(NUM, DIMS))


def stays(which, name):
    """Whether `make test` has it. Samplers of few steps run under the first processes, those of 80
    steps under VP. Of the longer ones `ald` runs, under one process."""
    if which in ("dpmpp, SDE", "heun, churn"):
        return name == "vp"
    if which in ("dpmpp 2", "dpmpp 3", "unipc 2", "unipc 3"):
        return False  # the papers' formulas hold them, in test_fast.py
    if which == "ald":
        return name == "subvp"
    return SAMPLER_CASES[which].steps < 400 and name in FIRST


def runs():
    """(sampler, process): those of few steps under each process, those of hundreds under two of the
    first and all later ones. Their bias under each is held without noise, above, by
    test_convergence.py and, of correctors, by test_stationary.py."""
    compared = [which for which, case in SAMPLER_CASES.items() if case.steps]
    pairs = ("vp", "ve"), ("subvp", "own"), ("ve", "vp"), ("own", "subvp")
    for index, which in enumerate(compared):
        pair = ("vp", "subvp") if which == "faithful" else pairs[index % 4]
        names = FIRST if SAMPLER_CASES[which].steps < 400 else pair
        for name in (*names, *LATER):
            if (which, name) == ("faithful", "edm"):
                continue  # refused: the original knows no process with T above 1
            yield from [(which, name)] if stays(which, name) else thorough((which, name))


def assert_same(out, truth, mixture, directions, bias, inflation):
    """Mean, covariance and the modes' weights of samples are those of the mixture at t_min."""
    assert out.x.shape == (NUM, DIMS) and out.nfe.shape == (NUM,) and out.nfe.dtype == jnp.int32
    mean, covariance = (np.asarray(a) for a in mixture.moments(truth, truth.t_min))
    projected = np.asarray(out.x) @ directions
    variance = np.diag(directions.T @ covariance @ directions)
    shift = (projected.mean(0) - directions.T @ mean) / np.sqrt(variance)
    assert np.all(np.abs(shift) < 3 / np.sqrt(NUM) + bias), shift
    # The whole covariance along these directions, whitened by the truth: 3 standard errors of an
    # entry.
    whiten = np.linalg.inv(np.linalg.cholesky(directions.T @ covariance @ directions))
    excess = whiten @ np.cov(projected.T) @ whiten.T - np.eye(4)
    error = 3 * np.sqrt((1 + np.eye(4)) / NUM) + bias
    assert np.all(excess < error + inflation * np.eye(4)) and np.all(excess > -error), excess
    posterior = np.asarray(mixture.posterior(truth, out.x, jnp.full(NUM, truth.t_min)))[:, 0]
    weight = abs(posterior.mean() - 0.35)
    assert weight < 3 * posterior.std() / np.sqrt(NUM) + bias, posterior.mean()


@pytest.mark.parametrize(("which", "name"), [*runs()])
def test_samples_have_the_oracles_moments_and_mode_weights(which, name, mixture, directions):
    case, truth = SAMPLER_CASES[which], PROCESSES[name]
    sampler, bias = case.make(num_steps=case.steps, denoise=False), case.bias
    if bias is None:
        widest = float(np.linalg.eigvalsh(np.asarray(mixture.moments(truth, 0.0)[1])).max())
        bias = annealed_langevin_error(sampler, process_of(name), widest)
    sde = process_of(name, sampler)
    out = many(sampler, sde, mixture.score(sde))
    assert_same(out, truth, mixture, directions, bias, case.inflation)


@pytree
class LearnedVariances:
    """What a network of learned variances should say, for steps between these times (N + 1,): the
    exact score, and the share by which the variance is Var(x_s | x_t), number by number."""

    score: oracle.MixtureScore
    times: jax.Array

    def __call__(self, x, t):
        return self.score(x, t)

    def score_and_share(self, x, t):
        mixture, sde = self.score.mixture, self.score.sde
        s = self.times[jnp.argmin(jnp.abs(self.times[None] - t[:, None]), axis=1) + 1]
        step, alpha, sigma2 = sde.reverse_step(s, t), sde.alpha(t), jnp.square(sde.sigma(t))
        log_joint, scores = mixture._components(sde, x, t)
        shares = jax.nn.softmax(log_joint, axis=-1)
        score = jnp.einsum("bk,bkd->bd", shares, scores)
        # The diagonal of the log density's Hessian, and by it that of Cov(x0 | x_t): Tweedie's
        # formula of second order.
        of_data = jnp.square(alpha)[:, None, None] * mixture.variances[None]
        spread = of_data + sigma2[:, None, None]
        curvature = -jnp.einsum("kde,bke->bkd", jnp.square(mixture.axes), 1 / spread)
        hessian = jnp.einsum("bk,bkd->bd", shares, curvature + jnp.square(scores))
        hessian = hessian - jnp.square(score)
        of_x0 = (sigma2 / jnp.square(alpha))[:, None] * (1 + sigma2[:, None] * hessian)
        large, small = jnp.square(step.G)[:, None], jnp.square(step.posterior_std)[:, None]
        # q(x_s | x_t, x0) has the variance `small`, and x0 in its mean with this weight.
        weight = sde.alpha(s)[:, None] * large / sigma2[:, None]
        variance = small + jnp.square(weight) * of_x0
        return score, jnp.log(variance / small) / jnp.log(large / small)


@pytest.mark.parametrize("name", VP_FIRST)
def test_learned_variances_have_the_oracles_moments(name, mixture, directions):
    """The best ones, at a quarter of the steps that the fixed ones have above."""
    truth, sde = PROCESSES[name], process_of(name)
    sampler = PredictorCorrector(100, "ancestral_learned", denoise=False)
    out = many(sampler, sde, LearnedVariances(mixture.score(sde), sampler.times(sde)))
    assert_same(out, truth, mixture, directions, 0.02, 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("predictor", ["ancestral", "ancestral_large"])
def test_with_as_few_steps_fixed_variances_miss_them(predictor, mixture, directions):
    sde = process_of("vp")
    out = many(PredictorCorrector(100, predictor, denoise=False), sde, mixture.score(sde))
    with pytest.raises(AssertionError):
        assert_same(out, PROCESSES["vp"], mixture, directions, 0.02, 0.0)


TO_NOISE = {"cosine": Cosine(), "sigmoid": Sigmoid(), "flow": Flow()}
"""Without any data at T."""


def runs_from_noise():
    """(sampler, process): those of the denoised data under each, the flow where it is finite."""
    for which, case in SAMPLER_CASES.items():
        for name in TO_NOISE:
            takes = case.make().denoised_only or (which == "ode" and name != "sigmoid")
            if case.steps and takes:
                yield which, name


@pytest.mark.slow
@pytest.mark.parametrize(("which", "name"), [*runs_from_noise()])
def test_samples_from_pure_noise_have_them_too(which, name, mixture, directions):
    case, sde = SAMPLER_CASES[which], TO_NOISE[name]
    grid = {} if which == "ode" else {"grid": "angle"}  # of finite steps at T
    sampler = case.make(num_steps=case.steps, denoise=False, **grid)
    out = many(sampler, sde, mixture.score(sde))
    assert_same(out, sde, mixture, directions, case.bias, case.inflation)


def test_a_process_that_cannot_be_run_back_from_T_is_refused():
    class Linear(SDE):
        def alpha(self, t):
            return 1.0 - t

        def sigma(self, t):
            return t

    for sampler in (PredictorCorrector(), AnnealedLangevin(), ProbabilityFlow()):
        with pytest.raises(ValueError, match=r"Linear: .* a T a little lower"):
            sampler.sample(jax.random.key(0), Linear(), lambda x, t: -x, shape=(2, 3))


def test_annealed_langevin_with_few_levels_stays_finite():
    """Far apart levels make a step of e = 1 - r, whose noise b = r^2 - (1 - e)^2 is 0 but for a
    rounding, of either sign."""
    for num_steps in (5, 21, 50):
        samples = AnnealedLangevin(num_steps).sample(
            jax.random.key(0), PROCESSES["vp"], lambda x, t: -x, shape=(3, 2, 2, 1)
        )
        assert np.isfinite(samples.x).all(), num_steps


@pytest.mark.parametrize(
    ("sigma_max", "num_steps", "published"), [(50.0, 232, 6.2e-6), (90.0, 500, 3.3e-6)]
)
def test_ncsnv2s_step_size_is_the_published_one(sigma_max, num_steps, published):
    """Technique 4 for CIFAR-10 and CelebA, five steps a level (Song, Ermon 2020, appendix B.1);
    they give e sigma_min^2, in two digits."""
    sampler = AnnealedLangevin(num_steps, 5, consistent=False)
    step = float(sampler.step_length(VESDE(0.01, sigma_max)))
    assert step * 0.01**2 == pytest.approx(published, abs=0.05e-6)


@pytest.mark.parametrize("step_size", [1.5, 0.0, -0.1])
def test_annealed_langevin_refuses_steps_beyond_the_noise(step_size):
    with pytest.raises(ValueError, match=rf"{step_size}: allowed are numbers above 0 and below 1"):
        AnnealedLangevin(step_size=step_size)


def test_annealed_langevin_refuses_a_single_level():
    """Its levels lead from T to t_min."""
    with pytest.raises(ValueError, match="num_steps = 1: allowed are integers of at least 2"):
        AnnealedLangevin(num_steps=1)


def test_heun_refuses_churn_between_no_levels():
    with pytest.raises(ValueError, match=r"churn_to = 1.0: .* from churn_from = 2.0 on"):
        Heun(churn_from=2.0, churn_to=1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PredictorCorrector(num_steps=0),
        lambda: PredictorCorrector(snr=-1.0),
        lambda: AnnealedLangevin(steps_per_level=0),
        lambda: ProbabilityFlow(rtol=0.0),
    ],
)
def test_settings_that_are_not_positive_are_refused(make):
    with pytest.raises(ValueError, match="allowed are numbers above 0"):
        make()
