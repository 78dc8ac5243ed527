"""DDIM, the multistep methods and Heun: what their papers say that they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
)
from score_sde.schedules import EDM
from score_sde.score import Model, denoise
from tests.cases import (
    EVERY,
    PROCESSES,
    PUBLISHED,
    only,
    overlapping_mixture,
    process_of,
    run_with,
)
from tests.commands import as_users_have_it


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(4)


def end(sampler, sde, mixture, num=8):
    sample = sampler.sample(jax.random.key(3), sde, mixture.score(sde), shape=(num, 4))
    return np.asarray(sample.x)


@jax.jit
def exact_score(mixture, sde, x, t):
    return mixture.score(sde)(x, t)


def beside(sampler, name, mixture, written_again):
    """The samples at t_min, and those of the same method written a second time, from one noise:
    ``written_again(sde, score, x, times)`` works in float64, its score's values are float32."""
    sde = process_of(name)
    x = sde.prior_std() * jax.random.normal(jax.random.key(0), (8, 4))
    ours = sampler.sample(jax.random.key(0), sde, mixture.score(sde), x).x

    def score(x, t):
        t = jnp.full(len(x), t, jnp.float32)
        return np.asarray(exact_score(mixture, sde, jnp.asarray(x, jnp.float32), t), np.float64)

    times = jax.jit(sampler.times)(sde)
    return ours, written_again(PROCESSES[name], score, np.asarray(x, np.float64), times)


def assert_same(first, second):
    # Two ways to the same numbers in float32: roundings of 1e-7 of states up to sigma_max = 50 in
    # some dozen steps, in x0 = (x + sigma^2 score) / alpha at alpha = 0.007 too.
    np.testing.assert_allclose(first, second, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", EVERY)
def test_ddim_with_all_its_noise_is_ancestral_sampling(name, mixture):
    """eta = 1 is the posterior q(x_s | x_t, x0) at Tweedie's x0, on the same times and noise."""
    ddim = DDIM(20, eta=1.0, grid="uniform", denoise=False)
    ancestral = PredictorCorrector(20, "ancestral", denoise=False)
    sde = process_of(name)
    assert_same(end(ddim, sde, mixture), end(ancestral, sde, mixture))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_step_multistep_is_ddim(name, eta, mixture):
    first = ExponentialMultistep(12, 1, eta=eta, denoise=False)
    sde = process_of(name)
    assert_same(end(first, sde, mixture), end(DDIM(12, eta=eta, denoise=False), sde, mixture))


def dpm_solver_pp_2m(sde, score, x, times):
    """Lu et al. 2022, algorithm 2, written a second time; the step of eq. 18 without its noise."""
    alpha, sigma = np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))
    lambdas, before = np.log(alpha / sigma), None
    for i in range(len(times) - 1):
        x0 = (x + sigma[i] ** 2 * score(x, times[i])) / alpha[i]
        h, estimate = lambdas[i + 1] - lambdas[i], x0
        if i:
            r = (lambdas[i] - lambdas[i - 1]) / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * estimate
        before = x0
    return x


@pytest.mark.parametrize("name", PUBLISHED)
def test_order_two_is_dpm_solver_pp_2m(name, mixture):
    """On a grid whose steps differ in log-SNR."""
    sampler = ExponentialMultistep(10, 2, grid="karras", lower_order_final=False, denoise=False)
    assert_same(*beside(sampler, name, mixture, dpm_solver_pp_2m))


def multistep(sde, score, x, times, order, corrector, lower_order_final):
    """UniPC (Zhao et al. 2023, algorithms 1 to 3), written a second time, by quadrature: the
    polynomial through the values of D, times e^(tau - h), integrated over the step; where the
    papers take a_1 = 1/2, half the slope instead. Without the corrector UniP, but for the first
    step's end with order 3."""
    alpha, sigma = (np.asarray(f(times), np.float64) for f in (sde.alpha, sde.sigma))
    lambdas, num = np.log(alpha / sigma), len(times) - 1
    nodes, weights = np.polynomial.legendre.leggauss(20)

    def taken(x, i, known):
        """The step from i, D known at the indices of ``known``."""
        h = lambdas[i + 1] - lambdas[i]
        tau = 0.5 * h * (nodes + 1.0)
        where = lambdas[list(known)] - lambdas[i]
        values = np.stack(list(known.values()))
        if len(known) == 2:
            at = values[0] + (values[1] - values[0]) * (0.5 * h - where[0]) / (where[1] - where[0])
            integral = -np.expm1(-h) * at
        else:
            lagrange = np.stack(
                [
                    np.prod([(tau - b) / (a - b) for b in where if b != a] or [tau**0], axis=0)
                    for a in where
                ]
            )
            integral = np.tensordot((lagrange * np.exp(tau - h)) @ weights * 0.5 * h, values, 1)
        return sigma[i + 1] / sigma[i] * x + alpha[i + 1] * integral

    known, start = {}, x
    for i in range(num):
        d = (x + sigma[i] ** 2 * score(x, times[i])) / alpha[i]
        if i and (corrector or (order == 3 and i == 1)):
            back = min(order, i) if not lower_order_final else min(order, i, num - i + 1)
            before = dict(list(known.items())[-back:])
            x = taken(start, i - 1, before | {i: d})
        known[i] = d
        back = min(order, i + 1) if not lower_order_final else min(order, i + 1, num - i)
        start, x = x, taken(x, i, dict(list(known.items())[-back:]))
    return x


@pytest.mark.parametrize("name", only(("vp", "ve"), PUBLISHED))
@pytest.mark.parametrize(
    ("order", "corrector", "lower_order_final"),
    # Each two settings together once.
    [(1, True, True), (2, True, False), (2, False, True), (3, True, True), (3, False, False)],
)
def test_multistep_is_the_papers(name, order, corrector, lower_order_final, mixture):
    sampler = ExponentialMultistep(
        9, order, corrector, lower_order_final=lower_order_final, denoise=False
    )
    again = partial(
        multistep, order=order, corrector=corrector, lower_order_final=lower_order_final
    )
    assert_same(*beside(sampler, name, mixture, again))


def adams(sde, score, x, times, order, variable):
    """Adams and Bashforth's method in y = x / alpha and nu = sigma / alpha, written a second time
    by quadrature: the polynomial in ``variable`` (of nu's times) through the values of epsilon,
    integrated over nu."""
    alpha, sigma = (np.asarray(f(times), np.float64) for f in (sde.alpha, sde.sigma))
    y, nu, known = x / alpha[0], sigma / alpha, []
    for i in range(len(times) - 1):
        known.insert(0, -sigma[i] * score(alpha[i] * y, times[i]))
        known = known[:order]
        nodes, at, mass = variable(sde, np.asarray(times, np.float64), nu, i, len(known))
        for j, value in enumerate(known):
            lagrange = np.ones_like(at)
            for other in range(len(known)):
                if other != j:
                    lagrange *= (at - nodes[other]) / (nodes[j] - nodes[other])
            y = y + (lagrange @ mass) * value
    return alpha[-1] * y


def steps_taken_for_equal(sde, times, nu, i, number):
    """iPNDM's: the number of the step, in which the nodes are 0, -1, ..."""
    at, mass = np.polynomial.legendre.leggauss(4)
    return -np.arange(number), 0.5 * (at + 1.0), 0.5 * mass * (nu[i + 1] - nu[i])


def the_time(sde, times, nu, i, number):
    """DEIS's: t, by small steps in nu."""
    fine = np.square(np.linspace(np.sqrt(times[i]), np.sqrt(times[i + 1]), 2001))
    t = jnp.asarray(fine, jnp.float32)
    mass = np.diff(np.asarray(sde.sigma(t) / sde.alpha(t), np.float64))
    return times[i - np.arange(number)], 0.5 * (fine[1:] + fine[:-1]), mass


@pytest.mark.parametrize("name", only(("vp", "ve"), PROCESSES))
@pytest.mark.parametrize("order", [2, 4])  # which begin with the lower ones' steps
@pytest.mark.parametrize("method, variable", [(IPNDM, steps_taken_for_equal), (DEIS, the_time)])
def test_multistep_in_epsilon_is_the_papers(name, order, method, variable, mixture):
    sampler = method(9, order, denoise=False)
    again = partial(adams, order=order, variable=variable)
    assert_same(*beside(sampler, name, mixture, again))


def karras_heun(sde, score, x, times, z, churn, churn_from, churn_to, churn_noise):
    """Karras et al. 2022, algorithm 2, written a second time in y = x / alpha: the states of x."""

    def at(t):
        t = jnp.full(1, t)
        return float(sde.alpha(t)[0]), float(jnp.exp(-0.5 * sde.log_snr(t))[0])

    def slope(y, nu):
        t = sde.inverse_log_snr(jnp.asarray([-2.0 * np.log(nu)]))
        alpha, nu = at(t[0])
        return (
            -nu * alpha * score(alpha * y, t[0])
        )  # (y - D) / nu with D = (x + sigma^2 score) / alpha

    alphas, nus = zip(*(at(t) for t in times), strict=True)
    y, states = np.asarray(x, np.float64) / alphas[0], []
    for i in range(len(times) - 1):
        gamma = (
            min(churn / (len(times) - 1), np.sqrt(2) - 1) if churn_from <= nus[i] <= churn_to else 0
        )
        lifted = min(nus[i] * (1 + gamma), nus[0])
        y = y + np.sqrt(lifted**2 - nus[i] ** 2) * churn_noise * z[i]
        first = slope(y, lifted)
        euler = y + (nus[i + 1] - lifted) * first
        y = y + (nus[i + 1] - lifted) * 0.5 * (first + slope(euler, nus[i + 1]))
        states.append(alphas[i + 1] * y)
    return np.stack(states)


@pytest.mark.parametrize("name", PUBLISHED)
def test_heun_is_karras_and_others(name, mixture):
    sde = process_of(name)
    sampler = Heun(12, 6.0, 0.05, 3.0, 1.1, grid="karras", denoise=False)
    x = sde.prior_std() * jax.random.normal(jax.random.key(0), (8, 4))
    z = jax.random.normal(jax.random.key(1), (8, 12, 4))
    states = run_with(sampler, sde, mixture.score(sde), x, z)

    def score(x, t):
        t = jnp.full(len(x), t)
        return np.asarray(exact_score(mixture, sde, jnp.asarray(x, jnp.float32), t), np.float64)

    times = jax.jit(sampler.times)(sde)
    noises = np.moveaxis(np.asarray(z), 1, 0)
    theirs = karras_heun(PROCESSES[name], score, x, times, noises, 6.0, 0.05, 3.0, 1.1)
    # States of up to sigma_max = 50 in float32, whose levels come through the inverse log-SNR.
    for ours, state in zip(states, theirs, strict=True):
        np.testing.assert_allclose(ours, state, atol=1e-3 * max(1.0, np.abs(state).max()))


def algorithm_2(denoised, x, z, N, churn, churn_min, churn_max, churn_noise):
    """Karras et al. 2022, algorithm 2 with the times of eq. 5 from 80 to 0.002, as printed."""
    i = np.arange(N)
    t = (80 ** (1 / 7) + i / (N - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = np.append(t, 0.0)
    for i in range(N):
        gamma = min(churn / N, np.sqrt(2) - 1) if churn_min <= t[i] <= churn_max else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * churn_noise * z[:, min(i, N - 2)]
        d = (x_hat - denoised(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x - denoised(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2)
    return x


def of_two_modes(x, sigma, np=np):
    """E[x0 | x] of data about +0.5 and -0.5 in each dimension, with a deviation of 0.3, alpha = 1.
    (Of two points every end would be a point, whatever the steps.)"""
    total = 0.3**2 + sigma**2
    return (0.3**2 * x + sigma**2 * 0.5 * np.tanh(0.5 * x / total)) / total


@pytest.mark.parametrize("churn", [5.0, 40.0])
def test_the_stochastic_sampler_is_algorithm_2_of_karras_and_others(churn):
    """In float64, with their settings for ImageNet (table 5), of whose churn of 40 a step of 18 has
    at most sqrt(2) - 1, and with less churn, not cut off."""
    rng = np.random.default_rng(0)
    x, z = 80.0 * rng.normal(size=(8, 3)), rng.normal(size=(8, 17, 3))
    settings = (churn, 0.05, 50.0, 1.003)
    sampler, sde = Heun(17, *settings), EDM()

    def score(x, t):
        sigma = t[:, None]
        return (of_two_modes(x, sigma, jnp) - x) / sigma**2

    with as_users_have_it(), jax.enable_x64(True):
        states = run_with(sampler, sde, Partial(score), jnp.asarray(x), jnp.asarray(z))
        end = denoise(sde, score, states[-1], jnp.full(8, sde.t_min))
        assert end.dtype == jnp.float64
    np.testing.assert_allclose(end, algorithm_2(of_two_modes, x, z, 18, *settings), atol=1e-8)


def test_the_order_that_is_best_for_the_steps():
    best = {(8, 0.0): 3, (7, 0.0): 2, (20, 0.5): 2}
    for (num_steps, eta), order in best.items():
        assert ExponentialMultistep(num_steps, eta=eta).lookback == order


def test_ddim_cuts_the_images_and_leaves_the_noise():
    """Of a model whose images are all 3 + x: the last one, and the states by hand."""
    sde, clip = PUBLISHED["vp"], 2.0

    def score(x, t):  # alpha (3 + x) = x + sigma^2 score
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return (alpha * (3.0 + x) - x) / jnp.square(sigma)

    x = jnp.array([[0.5, -4.0, -40.0]])
    sampler = DDIM(3, clip=clip, grid="log_snr")
    drawn = sampler.sample(jax.random.key(0), sde, score, x, trajectory=True)
    times = sampler.times(sde)
    alpha, sigma = (np.asarray(each(times), float) for each in (sde.alpha, sde.sigma))
    state = np.asarray(x, float)
    for i in range(3):
        cut = np.clip(3.0 + state, -clip, clip)
        state = alpha[i + 1] * cut + sigma[i + 1] * (state - alpha[i] * (3.0 + state)) / sigma[i]
        # The score's division by sigma^2 = 1e-5 at the last time amplifies float32's 1e-7 by sigma.
        np.testing.assert_allclose(drawn.trajectory[i + 1], state, rtol=1e-3)
    np.testing.assert_allclose(drawn.x, np.clip(3.0 + state, -clip, clip), rtol=1e-3)
    uncut = DDIM(3, grid="log_snr").sample(jax.random.key(0), sde, score, x)
    assert np.abs(uncut.x - drawn.x).max() > 1.0


@pytest.mark.parametrize("name", only(("vp",), ("vp", "ve")))
def test_churn_lifts_to_levels_of_the_chain(name):
    sde, num_levels, told = PUBLISHED[name], 100, []

    def apply(params, x, noise, condition):
        told.append(float(noise[0]))
        return x

    model = Model(None, sde, apply, "epsilon", "time", num_levels, "matched")
    sampler = Heun(4, churn=2.0, num_levels=num_levels)
    with jax.disable_jit():
        nfe = sampler.sample(jax.random.key(0), sde, model, shape=(2, 3)).nfe
    assert len(told) == nfe[0]
    np.testing.assert_allclose(told, np.rint(told), atol=5e-3)
    # It does lift: some starts of steps are not the ends of those before.
    assert len(set(np.rint(told))) > sampler.num_steps + 1


def test_churn_stays_below_the_level_of_T():
    """No evaluation beyond T, where no network is trained."""
    reached = []

    def score(x, t):
        reached.append(float(t.max()))
        return -x

    sampler = Heun(4, churn=40.0)
    with jax.disable_jit():
        nfe = sampler.sample(jax.random.key(0), PUBLISHED["ve"], score, shape=(2, 3)).nfe
    assert len(reached) == nfe[0] and max(reached) <= 1.0


def test_churn_where_it_is_wanted(mixture):
    """Outside of churn_from ... churn_to the sampler is deterministic."""
    sde = PUBLISHED["ve"]
    plain = end(Heun(8), sde, mixture)
    np.testing.assert_array_equal(end(Heun(8, churn=2.0, churn_from=60.0), sde, mixture), plain)
    assert np.abs(end(Heun(8, churn=2.0, churn_to=60.0), sde, mixture) - plain).max() > 0.01


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: DDIM(eta=1.5), r"eta = 1\.5: allowed are numbers from 0 to 1"),
        (lambda: DDIM(0), "num_steps = 0: allowed are numbers above 0"),
        (lambda: DDIM(1, grid="paper"), "num_steps = 1: allowed are .* at least 2"),
        (lambda: DDIM(grid="cosine"), "grid = 'cosine': allowed are uniform, paper, quadratic"),
        (lambda: Heun(rho=0.0), r"rho = 0\.0: allowed are numbers above 0"),
        (lambda: Heun(churn=-1.0), r"churn = -1\.0: allowed are numbers of at least 0"),
        (lambda: ExponentialMultistep(order=4), "order = 4: allowed are 1, 2, 3"),
        (lambda: IPNDM(order=5), "order = 5: allowed are 1, 2, 3, 4"),
        (
            lambda: ExponentialMultistep(order=3, eta=1.0),
            "order = 3: allowed are 1, 2 with eta above 0",
        ),
        (
            lambda: ExponentialMultistep(order=2, corrector=True, eta=0.5),
            "eta = 0.5: allowed are 0 with corrector",
        ),
    ],
)
def test_settings_that_do_not_exist_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
