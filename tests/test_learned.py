"""The learned schedule: as a process, its two gradients, and what training it does."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_sde
from score_sde import build, networks
from score_sde.bounds import chain_bound, likelihood_bound
from score_sde.learned import LearnedVP, constants
from score_sde.likelihood import log_likelihood
from score_sde.score import Model
from score_sde.sde import SDE, expand
from score_sde.times import low_discrepancy
from score_sde.variational import ENDS, variational_loss
from tests.commands import DIGITS, FEW, ROOT, TINY, as_users_have_it, succeed

DIMS = 32
MEAN, STDS = np.linspace(-1, 1, DIMS), np.geomspace(0.05, 1.0, DIMS)
BENT = LearnedVP(-6.0, 3.0, 0.0, (0.5, -1.0, 1.0), rates=(6.0, 12.0, 20.0), places=(1.0, 4.0, 6.0))
INSIDE = [field.name for field in dataclasses.fields(LearnedVP) if field.name not in ENDS]


def noise_of_a_gaussian(params, x, log_snr, condition):
    """The exact epsilon of N(MEAN, STDS^2), times a parameter that is 1."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * log_snr))[:, None] for sign in (1, -1))
    mean, std = (jnp.asarray(row, x.dtype)[None] for row in (MEAN, STDS))
    return params * sigma * (x - alpha * mean) / (jnp.square(alpha * std) + jnp.square(sigma))


def model_of(process, factor=1.0):
    return Model(jnp.float32(factor), process, noise_of_a_gaussian, "epsilon", "log_snr")


def draws(key, number):
    mean, std = (jnp.asarray(row, jnp.float32)[None] for row in (MEAN, STDS))
    return mean + std * jax.random.normal(key, (number, DIMS))


def arrays(process):
    return {name: jnp.asarray(value, jnp.float32) for name, value in constants(process).items()}


def test_what_is_written_out_is_what_follows_from_the_pair():
    t = jnp.linspace(0.01, 0.99, 13)
    gamma = BENT.gamma(jnp.asarray([0.0, *t, 1.0]))
    np.testing.assert_allclose(gamma[jnp.asarray([0, -1])], [-6.0, 3.0], atol=1e-5)
    assert (np.diff(gamma) > 0).all()
    # From here on some tens of float32 roundings, 6e-8 each.
    np.testing.assert_allclose(BENT.log_snr(t), SDE.log_snr(BENT, t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(BENT.drift_rate(t), SDE.drift_rate(BENT, t), rtol=1e-5)
    np.testing.assert_allclose(BENT.diffusion(t), SDE.diffusion(BENT, t), rtol=1e-5)
    np.testing.assert_allclose(BENT.inverse_log_snr(BENT.log_snr(t)), t, atol=1e-5)
    for ours, derived in zip(
        BENT.transition(t[:-1], t[1:]), SDE.transition(BENT, t[:-1], t[1:]), strict=True
    ):
        np.testing.assert_allclose(ours, derived, rtol=1e-5)
    with pytest.raises(ValueError, match=r"gamma_max = -20\.0: allowed are numbers above -13\.3"):
        LearnedVP(gamma_max=-20.0)


def test_the_ends_get_the_bounds_gradient_and_the_rest_that_of_the_square():
    """Against derivatives of the estimate written out once more. float32: 1e-4 of the largest."""
    key, x0 = jax.random.key(0), draws(jax.random.key(1), 64)
    key_t, key_z = jax.random.split(key)
    t, z = low_discrepancy(key_t, len(x0)), jax.random.normal(key_z, x0.shape)

    def written_out(values, factor):
        process = LearnedVP(**values)
        alpha, sigma = (expand(of(t), x0) for of in (process.alpha, process.sigma))
        x = alpha * x0 + sigma * z
        error = z - noise_of_a_gaussian(factor, x, process.log_snr(t), {})
        diffusion = 0.5 * process.slope(t) * jnp.mean(jnp.square(error), axis=1)
        one = jnp.ones(1)
        alpha, sigma = process.alpha(one), process.sigma(one)
        size2 = jnp.mean(jnp.square(x0), axis=1)
        prior = 0.5 * (alpha**2 * size2 + sigma**2 - 1 - jnp.log(sigma**2))
        noise = process.sigma(0 * one) / process.alpha(0 * one)
        rest = 0.5 * (jnp.log(2 * jnp.pi * noise**2) + 1)
        return diffusion, diffusion + prior + rest

    def loss(values, factor):
        return jnp.mean(variational_loss(key, model_of(LearnedVP(**values), factor), x0))

    @jax.jit
    def derived(*at):
        by_bound, by_factor = jax.grad(lambda *at: jnp.mean(written_out(*at)[1]), (0, 1))(*at)
        by_square = jax.grad(lambda *at: jnp.mean(jnp.square(written_out(*at)[0])))(*at)
        return jnp.mean(written_out(*at)[1]), by_bound, by_factor, by_square

    # A factor other than 1: with the exact score some of the derivatives are 0.
    at = arrays(BENT), jnp.float32(0.9)
    value, (ours, of_factor) = jax.jit(jax.value_and_grad(loss, (0, 1)))(*at)
    wanted, by_bound, by_factor, by_square = derived(*at)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(of_factor, by_factor, rtol=1e-4)
    for name in ENDS:
        np.testing.assert_allclose(ours[name], by_bound[name], rtol=1e-3, atol=1e-5)
    for name in INSIDE:
        large = float(jnp.max(jnp.abs(by_square[name])))
        assert large > 1e-4
        np.testing.assert_allclose(ours[name], by_square[name], rtol=0, atol=1e-3 * large)


@partial(jax.jit, static_argnums=2)
def estimates(values, key, number):
    """Of draws under the schedule with these constants, (B,)."""
    return variational_loss(key, model_of(LearnedVP(**values)), draws(key, number))


def bound_between(low, high):
    """Three terms of the bound with the exact score between the ends of gamma, averaged over the
    data and written out in float64, nats per dimension. With s^2 = exp(gamma) = sigma^2 / alpha^2
    and k = v / (v + s^2), E|sigma score + z|^2 = (1 - k)^2 v / s^2 + k^2 = k."""
    gamma = np.linspace(low, high, 20_001)
    k = np.square(STDS) / (np.square(STDS) + np.exp(gamma)[:, None])
    alpha2, sigma2 = 1 / (1 + np.exp(high)), 1 / (1 + np.exp(-high))
    second = np.mean(np.square(MEAN) + np.square(STDS))
    prior = 0.5 * (alpha2 * second + sigma2 - 1 - np.log(sigma2))
    decoder = 0.5 * (np.log(2 * np.pi) + 1 + low)  # without a network
    return prior, 0.5 * np.trapezoid(k.mean(axis=1), gamma), decoder


def test_the_bound_depends_on_the_ends_and_not_on_what_lies_between():
    """Within 4 standard errors of 4096 draws. The ends are far apart in it: 0.07 nats or more, as
    fewer noise levels are a worse model."""
    line = arrays(LearnedVP()) | {"heights": jnp.full(8, -20.0)}
    late = arrays(LearnedVP()) | {"heights": jnp.linspace(-5.0, 3.0, 8)}
    wanted = {ends: sum(bound_between(*ends)) for ends in ((-13.0, 5.0), (-6.0, 3.0), (-3.0, 1.0))}
    assert np.diff([*wanted.values()]).min() > 0.07
    for ends, bound in wanted.items():
        for index, schedule in enumerate((line, late)):
            values = schedule | dict(zip(ENDS, map(jnp.float32, ends), strict=True))
            found = np.asarray(estimates(values, jax.random.key(index), 4096))
            error = found.std(ddof=1) / 64
            assert error < 0.15 and abs(found.mean() - bound) < 4 * error, (ends, index)


@pytest.mark.thorough
def test_a_large_batch_is_as_small_ones():
    """Also beyond 2^15 numbers, here 1024 items, where jaxlib 0.10.2 errs on CPUs with gamma summed
    over an axis. float32: times from a bisection, and a sum of 32 squares. And they are right: the
    diffusion's mean within 4 standard errors."""
    key, process, x0 = jax.random.key(2), LearnedVP(-13.0, 5.0), draws(jax.random.key(3), 4096)
    bound = partial(likelihood_bound, key, process, model_of(process), num_times=2, t_min=0.0)
    whole = bound(x0)
    parts = [bound(x0[at : at + 256], first=at) for at in range(0, 4096, 256)]
    for name in ("diffusion", "reconstruction"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(getattr(whole, name), joined, rtol=1e-4, atol=1e-3)
    each = np.asarray(whole.diffusion) / DIMS
    error = each.std(ddof=1) / 64
    assert error < 0.05 and abs(each.mean() - bound_between(-13.0, 5.0)[1]) < 4 * error


def test_levels_in_time_cost_more_than_all_of_them():
    """vlb of K levels: its steps are KL divergences, whose sum is written out in float64. It comes
    down to the bound from above, of first order in 1 / K."""
    process, x0 = LearnedVP(-9.0, 5.0), draws(jax.random.key(4), 512)

    def written_out(number):
        t = jnp.linspace(0.0, 1.0, number)
        gamma = np.asarray(process.gamma(t), np.float64)[1:]
        k = np.square(STDS) / (np.square(STDS) + np.exp(gamma)[:, None])
        growth = np.expm1(np.diff(np.asarray(process.gamma(t), np.float64)))
        return 0.5 * np.sum(growth * k.mean(axis=1))

    exact = bound_between(-9.0, 5.0)[1]
    above = [written_out(number) - exact for number in (20, 200, 2000)]
    assert min(above) > 0 and np.all(np.asarray(above[1:]) < 0.15 * np.asarray(above[:-1]))
    found = chain_bound(
        jax.random.key(5), model_of(process), x0, variance="small", num_times=20, t_min=0.0
    )
    each = np.asarray(found.diffusion) / DIMS
    error = each.std(ddof=1) / np.sqrt(512)
    assert error < 0.1 * above[0] and abs(each.mean() - written_out(20)) < 4 * error
    with pytest.raises(ValueError, match="num_times = 1: allowed are integers of at least 2"):
        chain_bound(jax.random.key(5), model_of(process), x0, num_times=1)


@pytest.mark.thorough
def test_the_flow_lies_below_the_bounds():
    """Of an exact score, within 4 standard errors of 512 draws. The flow is at the entropy of the
    Gaussian. The bound in continuous time is tight for such a score, that of 20 levels is not."""
    process, x0 = LearnedVP(-9.0, 5.0), draws(jax.random.key(6), 512)
    key, model = jax.random.key(7), model_of(process)
    flow = log_likelihood(key, process, model, x0, divergence="exact").log_prob
    bound = likelihood_bound(key, process, model, x0, num_times=20).log_prob
    levels = chain_bound(key, model, x0, variance="small", num_times=20).log_prob
    flow, bound, levels = (-np.asarray(each) / DIMS for each in (flow, bound, levels))

    def error(each):
        return 4 * each.std(ddof=1) / np.sqrt(512)

    entropy = 0.5 * (np.log(2 * np.pi) + 1) + np.log(STDS).mean()
    assert abs(flow.mean() - entropy) < error(flow) < 0.05
    assert abs((bound - flow).mean()) < error(bound - flow) < 0.05
    assert (levels - flow).mean() > 5 * error(levels - flow) > 0


@pytest.mark.thorough
def test_training_a_schedule_lowers_the_bound_and_its_variance():
    """The exact score of a Gaussian, Adam on the schedule alone. The ends move apart, as more noise
    levels are a better model; between them the estimate scatters less. Measured with 400 steps of
    1024 draws: a standard deviation of 1.3, and of 3.9 by the first schedule between these ends."""
    optimizer = optax.adam(0.05)

    def step(carry, key):
        values, state = carry
        gradient = jax.grad(lambda values: jnp.mean(estimates(values, key, 256)))(values)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(values, updates), state), None

    begin = arrays(LearnedVP(-6.0, 3.0))
    keys = jax.random.split(jax.random.key(5), 150)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])
    with as_users_have_it():  # optax promotes dtypes
        trained = train((begin, optimizer.init(begin)))
    ends = [float(trained[name]) for name in ENDS]
    assert ends[0] < -7 and ends[1] > 4
    assert sum(bound_between(*ends)) < sum(bound_between(-6.0, 3.0)) - 0.02
    first = arrays(LearnedVP()) | {name: trained[name] for name in ENDS}
    spread, other = (
        float(jnp.std(estimates(values, jax.random.key(6), 4096))) for values in (trained, first)
    )
    assert spread < 0.6 * other


LEARNED = (
    *("--config.sde.name=vp_learned", "--config.training.loss=likelihood"),
    "--config.training.schedule_steps=4",
)


def train(workdir, *more):
    succeed("--mode=train", DIGITS, *TINY, *LEARNED, "--workdir", workdir, *more, cwd=ROOT)
    return score_sde.load(workdir)


def test_the_constants_are_parameters_beside_the_networks():
    config = score_sde.presets.load("vdm_digits")
    _, params = networks.abstract(build.network(config, build.dataset(config)))
    assert params.keys() == {"network", "constants"}
    assert params["constants"].keys() == constants(build.sde(config)).keys()
    assert {leaf.dtype for leaf in params["constants"].values()} == {jnp.dtype("float32")}


@pytest.mark.thorough
def test_a_run_learns_its_schedule_and_samples_by_it(tmp_path):
    run, first = train(tmp_path), arrays(LearnedVP())
    for name, value in arrays(run.sde).items():
        assert np.isfinite(value).all() and np.abs(np.asarray(value - first[name])).max() > 0, name
    assert run.sample(jax.random.key(0), 3).images.shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_it_is_a_run_like_any_other(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = train(whole)
    train(parts, "--config.training.num_steps=2")
    resumed = train(parts, "--config.training.num_steps=4")
    for name, value in arrays(run.sde).items():
        np.testing.assert_array_equal(value, getattr(resumed.sde, name))
    few = ("--config.likelihood.num_images=3", "--config.likelihood.num_times=3")
    for method, told in (
        ("bound", "3 times each"),
        ("vlb", "3 levels evenly spread in time"),
        ("ode", "up to solver and probes"),
    ):
        chosen = ("--workdir", whole, f"--config.likelihood.method={method}")
        assert told in succeed("--mode=likelihood", *chosen, *few, cwd=ROOT)
    images = score_sde.data.load("digits", "test").x[:3]
    again = run.decode(run.encode(jax.random.key(1), images))
    # Dequantized: within the bin of a level, up to the solver.
    assert np.abs(np.asarray(again, np.float64) - images).max() <= 1
    succeed("--mode=export", "--workdir", whole, "--target=out", cwd=tmp_path)
    succeed("--mode=convert", "--source=out", "--workdir=back", "--force", cwd=tmp_path)
    for name, value in arrays(score_sde.load(tmp_path / "back").sde).items():
        np.testing.assert_array_equal(value, getattr(run.sde, name))
    pc = ("--config.sampling.method=pc", "--output", tmp_path / "pc")
    assert "samples.png" in succeed("--mode=sample", "--workdir", whole, *FEW, *pc, cwd=ROOT)
