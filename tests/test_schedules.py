"""The processes of later works: their papers' formulas, and what happens at T without any data."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import oracle
from score_sde.discrete import DiscreteVPSDE, discretization
from score_sde.likelihood import log_likelihood
from score_sde.samplers import SAMPLERS, ProbabilityFlow
from score_sde.schedules import EDM, Cosine, Flow, Shifted, Sigmoid
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE
from tests.cases import PROCESSES, AnyProcess, only, overlapping_mixture, thorough

TIMES = np.concatenate([np.geomspace(1e-5, 0.5, 30), 1.0 - np.geomspace(0.4, 1e-3, 20)])


def cosine(t):
    """Nichol, Dhariwal 2021, eq. 17: alpha_bar."""
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2


def sigmoid(t):
    """Chen 2023, algorithm 1 with start = -3, end = 3, tau = 1: alpha_bar."""
    first, last, at = (1.0 / (1.0 + np.exp(-u)) for u in (-3.0, 3.0, 6.0 * t - 3.0))
    return (last - at) / (last - first)


@pytest.mark.parametrize(("sde", "alpha_bar"), [(Cosine(), cosine), (Sigmoid(), sigmoid)])
def test_the_published_schedules_in_float32(sde, alpha_bar):
    t = np.float32(TIMES).astype(np.float64)
    ours = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(sde.alpha(ours), np.sqrt(alpha_bar(t)), rtol=1e-4, atol=1e-6)
    # In float64 1 - alpha_bar has ten digits left at 1e-5; float32's own time moves it by 1e-7.
    np.testing.assert_allclose(sde.sigma(ours), np.sqrt(1.0 - alpha_bar(t)), rtol=1e-5)
    assert float(sde.alpha(jnp.ones(1))[0]) == 0.0


EACH = {
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "flow": Flow(),
    "edm": EDM(),
    "vp, shifted": Shifted(VPSDE(), 4.0),
    "vp, shifted down": Shifted(VPSDE(), 0.5),
    "sub-vp, shifted": Shifted(SubVPSDE(), 2.0),
    "ve, shifted": Shifted(VESDE(), 2.0),
    "cosine, shifted": Shifted(Cosine(), 4.0),
    "edm, shifted": Shifted(EDM(), 0.5),
}


@pytest.mark.parametrize("name", EACH)
def test_a_log_snr_leads_back_to_its_time(name):
    sde = EACH[name]
    t = jnp.asarray(TIMES, jnp.float32) * sde.T
    found = sde.inverse_log_snr(sde.log_snr(t))
    # A log-SNR of up to 20 has 1e-6 of rounding; its slope in log t or log (1 - t) is 1 or more.
    atol = 1e-7 if name.startswith("ve") else 0.0  # its slope is in t, and 17
    np.testing.assert_allclose(found, t, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(sde.T - found, sde.T - t, rtol=1e-3, atol=1e-6 * sde.T)
    gradient = jax.vmap(jax.grad(lambda lam: sde.inverse_log_snr(lam[None])[0]))(sde.log_snr(t))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_a_shift_moves_the_log_snr_and_keeps_the_curve(factor):
    """Of an image of 256 x 256 pixels by 2 log(64 / 256) (Hoogeboom et al. 2023)."""
    t = jnp.linspace(1e-3, 0.999, 50)
    betas = tuple(np.linspace(0.01, 0.3, 20).tolist())
    for sde in (VPSDE(), SubVPSDE(), VESDE(), DiscreteVPSDE(betas), Cosine(), Flow(), EDM()):
        shifted = Shifted(sde, factor)
        moved = shifted.log_snr(t) - sde.log_snr(t)
        np.testing.assert_allclose(moved, -2.0 * np.log(factor), atol=1e-5)
        ratio = 2.0 * jnp.log(shifted.alpha(t) / shifted.sigma(t))
        np.testing.assert_allclose(ratio, shifted.log_snr(t), rtol=1e-4, atol=1e-4)
    cosine = Shifted(Cosine(), factor)
    np.testing.assert_allclose(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, 1.0, rtol=1e-5)
    # Esser et al. 2024, eq. 23.
    flow = Shifted(Flow(), factor)
    np.testing.assert_allclose(flow.sigma(t), factor * t / (1.0 + (factor - 1.0) * t), rtol=1e-5)
    np.testing.assert_allclose(Shifted(EDM(), factor).sigma(t), factor * t, rtol=1e-5)
    # What is shifted keeps its size, and the time from which float32 resolves it, twice as well.
    twice = Shifted(Shifted(EDM(), factor), factor)
    np.testing.assert_allclose(twice.alpha(t), 1.0)
    np.testing.assert_allclose(twice.sigma(t), factor**2 * t, rtol=1e-5)
    assert Shifted(SubVPSDE(), factor).t_resolved == SubVPSDE.t_resolved


def test_a_shift_is_positive():
    for shift in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match=f"shift = {shift}: allowed are positive numbers"):
            Shifted(VPSDE(), shift)


@pytest.mark.parametrize("t_max", [0.0, 1.1, float("nan")])
def test_a_last_time_that_is_none(t_max):
    with pytest.raises(ValueError, match=r"t_max = .*: allowed are times above 0.001, up to 1"):
        Flow(t_max)


def test_edm_steps_as_published():
    """Karras et al. 2022, eq. 5, for N = 18."""
    i, N, rho = np.arange(18), 18, 7
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    expected = (high + i / (N - 1) * (low - high)) ** rho
    sde = EDM()
    found = sde.time_steps(sde.T, sde.t_min, 18)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == np.float32(80.0) and found[-1] == np.float32(0.002)


def test_the_cosine_chain_is_the_published_one():
    """Nichol, Dhariwal 2021: beta_t = 1 - alpha_bar_t / alpha_bar_(t - 1), at most 0.999."""
    alpha_bar = cosine(np.linspace(0.0, 1.0, 4001))
    betas = np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    discrete = discretization(Cosine())
    chain = discrete.chain(4000)
    kept = np.cumprod(1.0 - betas)
    np.testing.assert_allclose(chain.alpha, np.sqrt(kept), rtol=1e-5)
    np.testing.assert_allclose(chain.sigma, np.sqrt(1.0 - kept), rtol=1e-5)
    # The chain is the process at its levels, except at the clipped one.
    t = jnp.arange(1.0, 4000.0) / 4000.0
    np.testing.assert_allclose(chain.alpha[:-1], Cosine().alpha(t), rtol=2e-3)
    step = discrete.step(jnp.asarray([0.0, 0.5, 1.0]), 4000)
    np.testing.assert_allclose(jnp.square(step.G), betas[[0, 1999, 3999]], rtol=1e-5)
    np.testing.assert_allclose(1.0 + step.f, np.sqrt(1.0 - betas[[0, 1999, 3999]]), rtol=1e-5)


# --- T, where alpha is 0 --------------------------------------------------------------------------


class AnyToNoise(AnyProcess):
    """One of those without data at T."""

    family = {"cosine": Cosine(), "sigmoid": Sigmoid(), "flow": Flow()}  # noqa: RUF012

    def check_flow(self, score):
        list(self.family.values())[int(self.index)].check_flow(score)


MEAN, VARIANCES = np.asarray([0.5, -1.0]), np.asarray([1.0, 0.01])
DATA = oracle.gaussian(
    jnp.asarray(MEAN, jnp.float32), jnp.diag(jnp.asarray(VARIANCES, jnp.float32))
)


def flowed(sde, x, time):
    """Where the flow takes x from T, sigma(T) = 1, to a time."""
    t = jnp.full(1, time)
    alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
    return alpha * MEAN + np.sqrt(alpha**2 * VARIANCES + sigma**2) * np.asarray(x, np.float64)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(("method", "steps", "bias"), [("unipc", 40, 0.01), ("deis", 40, 0.03)])
def test_samplers_of_the_denoised_data_begin_at_pure_noise(method, steps, bias, index):
    sde, x = AnyToNoise(jnp.asarray(index)), jax.random.normal(jax.random.key(0), (8, 2))
    assert float(sde.alpha(jnp.ones(1))[0]) == 0.0
    sampler = SAMPLERS[method](num_steps=steps, grid="angle", denoise=False)
    found = sampler.sample(jax.random.key(0), sde, DATA.score(sde), x).x
    np.testing.assert_allclose(found, flowed(sde, x, sde.t_min), atol=bias)


@pytest.mark.parametrize("method", ["pc", "ald", "heun"])
def test_the_others_say_why_not(method):
    for sde in AnyToNoise.family.values():
        with pytest.raises(ValueError, match=r"alpha\(T\) = 0 .* a T a little lower \(sde.t_max\)"):
            SAMPLERS[method]().sample(jax.random.key(0), sde, DATA.score(sde), shape=(2, 2))


@pytest.mark.parametrize(
    "sde",
    [Cosine(), Flow(), *thorough(Shifted(Flow(), 2.0))],
    ids=["cosine", "flow", "flow, shifted"],
)
def test_the_flow_goes_from_pure_noise_to_data_and_back(sde):
    flow, x = ProbabilityFlow(denoise=False), jax.random.normal(jax.random.key(0), (8, 2))
    score = DATA.score(sde)
    found = flow.sample(jax.random.key(0), sde, score, x).x
    # Some hundred steps with an error of 1e-5 each.
    np.testing.assert_allclose(found, flowed(sde, x, sde.t_min), atol=5e-4)
    np.testing.assert_allclose(flow.encode(sde, score, found).x, x, atol=5e-3)
    with pytest.raises(ValueError, match=r"a T a little lower"):  # no `denoised`
        flow.sample(jax.random.key(0), sde, lambda x, t: -x, x)


def test_a_flow_that_is_infinite_at_T_is_refused():
    """alpha is the root of 1 - t there."""
    with pytest.raises(ValueError, match="a T a little lower"):
        ProbabilityFlow().sample(jax.random.key(0), Sigmoid(), DATA.score(Sigmoid()), shape=(2, 2))
    drawn = ProbabilityFlow(1e-3, 1e-3).sample(
        jax.random.key(0), Sigmoid(0.99), DATA.score(Sigmoid(0.99)), shape=(2, 2)
    )
    assert np.isfinite(drawn.x).all()


def test_the_velocity_is_the_flow_of_the_score():
    """Where both can be computed."""
    t = jnp.asarray([1e-3, 0.1, 0.5, 0.9])
    x = jax.random.normal(jax.random.key(1), (4, 2))
    for sde in (Cosine(), Sigmoid(), Flow(), Shifted(VESDE(), 2.0)):
        score = DATA.score(sde)
        velocity = sde.probability_flow(score)(x, t)
        by_score = SDE.probability_flow(sde, lambda x, t, score=score: score(x, t))(x, t)
        np.testing.assert_allclose(velocity, by_score, rtol=1e-3, atol=1e-3)


SIZES = [*product(("cosine", "sigmoid", "flow", "edm", "vp, shifted", "learned"), (2, 16, 256))]


@pytest.mark.parametrize(("name", "dims"), only([("flow", 2)], SIZES))
def test_log_density(name, dims):
    """With p_T itself at the end, which is the prior where there are no data left: what is left is
    the solver, 1e-3 nats/dim by design at the default tolerance."""
    others = {"sigmoid": Sigmoid(0.999), "learned": PROCESSES["learned"]}
    sde, mixture = {**EACH, **others}[name], overlapping_mixture(dims)
    x0 = mixture.sample(jax.random.key(0), 64 if dims < 256 else 2)  # 256: as many tangents each
    exact = mixture.log_prob(sde, x0, jnp.full(len(x0), 1e-5)) / dims
    end = None if name in ("cosine", "flow") else Partial(_end, mixture, sde)
    found = log_likelihood(
        jax.random.key(1), sde, mixture.score(sde), x0, divergence="exact", terminal_log_prob=end
    )
    np.testing.assert_allclose(found.log_prob / dims, exact, rtol=0, atol=1e-3)


def _end(mixture, sde, x, t):
    return mixture.log_prob(sde, x, t)
