"""Processes: the recorded references, the derived forms against the closed ones, float32 near
zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import processes
from score_sde.discrete import DiscreteVPSDE, discretization, interpolate
from score_sde.sde import SDE, VPSDE
from tests.cases import PROCESSES, PUBLISHED, recorded_score

# The original's own float32 cancels here (the references' README and solver_steps.json): the
# relative error of its recorded value, by time. Its float64 record is the truth there, and we are
# held to it below.
CANCELS = {
    "vp__marginal_std": {1e-5: 7e-3, 1e-3: 2e-4},
    "subvp__marginal_std": {1e-5: 1.3e-2, 1e-3: 3e-4},
    "subvp__diffusion": {1e-5: 7e-3, 1e-3: 2e-5},
    # f = -10 x and g^2 score / 2 differ by 0.03 at t = 1: rounding of 6e-8 in each becomes a few
    # times 2e-5.
    "vp__ode_drift": {0.9: 3e-4, 1.0: 3e-4},
    "subvp__ode_drift": {0.9: 3e-4, 1.0: 3e-4},
}


@pytest.fixture(scope="module")
def recorded(reference_dir):
    return dict(np.load(reference_dir / "solver_steps.npz"))


def evaluate(name: str, recorded: dict, index: int) -> dict[str, np.ndarray]:
    sde = PUBLISHED[name]
    x = jnp.asarray(recorded[f"{name}__x"][index])
    t = jnp.full(len(x), recorded["t"][index], x.dtype)
    score = recorded_score(sde, jnp.asarray(recorded["m"]), float(recorded["s0"]))
    mean, std = sde.marginal(x, t)
    reverse = sde.reverse(score)
    return {
        "score": score(x, t),
        "drift": sde.drift(x, t),
        "diffusion": sde.diffusion(t),
        "marginal_mean": mean,
        "marginal_std": std,
        "prior_logp": sde.prior_log_prob(x),
        "reverse_drift": reverse.drift(x, t),
        "reverse_diffusion": reverse.diffusion(t),
        "ode_drift": sde.probability_flow(score)(x, t),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_reproduces_the_recorded_terms(name, recorded):
    for index, t in enumerate(recorded["t"]):
        for what, value in evaluate(name, recorded, index).items():
            key = f"{name}__{what}"
            cancelling = CANCELS.get(key.replace("reverse_diffusion", "diffusion"), {})
            known = max([1e-5, *(error for s, error in cancelling.items() if np.isclose(s, t))])
            for truth, tolerance in (
                # 1e-5 of the largest value is the references' own tolerance for float32.
                (recorded[key][index], known),
                # Our float32 against the original's float64: only the flow's cancellation is ours
                # too.
                (recorded[f"{key}_f64"][index], known if what == "ode_drift" else 1e-5),
            ):
                scale = np.abs(truth).max() or 1.0
                np.testing.assert_allclose(
                    value, truth, rtol=0, atol=tolerance * scale, err_msg=f"{key} t={t}"
                )


@pytest.mark.parametrize("name", PUBLISHED)
def test_std_holds_in_float32_down_to_t_min(name):
    t = np.geomspace(1e-5, 1.0, 200)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    truth = {
        "vp": np.sqrt(-np.expm1(-integral)),
        "subvp": -np.expm1(-integral),
        "ve": 0.01 * 5000.0**t,
    }[name]
    np.testing.assert_allclose(PUBLISHED[name].sigma(jnp.asarray(t, jnp.float32)), truth, rtol=1e-5)


class Derived(SDE):
    """A process reduced to its pair."""

    name: str = "vp"

    @property
    def T(self):
        return PROCESSES[self.name].T

    def alpha(self, t):
        return PROCESSES[self.name].alpha(t)

    def sigma(self, t):
        return PROCESSES[self.name].sigma(t)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name not in ("own", "shifted")])
def test_closed_forms_are_the_derived_ones(name):
    closed, derived = PROCESSES[name], Derived(name)
    # From 0.01 on: the derived forms divide by a difference of rounding error 1e-7 / t, 1e-5 there.
    # Of the times and transitions some such errors come together.
    t = jnp.linspace(0.01, 1.0, 50) * closed.T
    s = 0.7 * t
    for what in ("log_alpha", "log_snr", "drift_rate", "diffusion"):
        np.testing.assert_allclose(
            getattr(closed, what)(t), getattr(derived, what)(t), rtol=2e-4, atol=1e-5
        )
    np.testing.assert_allclose(closed.inverse_log_snr(closed.log_snr(t)), t, rtol=1e-4)
    np.testing.assert_allclose(derived.inverse_log_snr(closed.log_snr(t)), t, rtol=1e-4)
    for ours, theirs in zip(closed.transition(s, t), derived.transition(s, t), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_transitions_compose_to_the_marginal(name):
    sde = PROCESSES[name]
    t = jnp.linspace(0.05, sde.T, 40)
    for s in (0.9 * t, 0.1 * t):
        factor, std = sde.transition(s, t)
        np.testing.assert_allclose(factor * sde.alpha(s), sde.alpha(t), rtol=1e-5)
        composed = jnp.sqrt(jnp.square(factor * sde.sigma(s)) + jnp.square(std))
        np.testing.assert_allclose(composed, sde.sigma(t), rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_sde_carries_the_marginals(name):
    """Mean and variance along t obey m' = f m and v' = 2 f v + g^2 (Song et al. 2021, eq. 29 and
    its source)."""
    sde = PROCESSES[name]
    # Half-way between two levels of a chain of 1000, whose beta jumps at each level.
    t, h = (jnp.round(jnp.linspace(0.2, 0.8, 13) * 999) + 0.5) / 999, 4e-4
    variance = jnp.square(sde.sigma(t))
    growth = (jnp.square(sde.sigma(t + h)) - jnp.square(sde.sigma(t - h))) / (2 * h)
    rate = sde.drift_rate(t)
    expected = 2.0 * rate * variance + jnp.square(sde.diffusion(t))
    # Central differences: error h^2 v''' / 6, below 1e-5 of the scale for rates up to about 20, and
    # rounding 1e-7 / h.
    scale = float(jnp.abs(growth).max())
    np.testing.assert_allclose(growth / scale, expected / scale, atol=5e-4)
    slope = (sde.alpha(t + h) - sde.alpha(t - h)) / (2 * h)
    scale = max(1.0, float(jnp.abs(slope).max()))
    np.testing.assert_allclose(slope / scale, rate * sde.alpha(t) / scale, atol=5e-4)


def test_constants_are_leaves_so_that_changing_them_does_not_recompile():
    traces = []

    @jax.jit
    def sigma(sde, t):
        traces.append(1)
        return sde.sigma(t)

    t = jnp.full(1, 0.5)
    first, second = sigma(VPSDE(beta_max=20.0), t), sigma(VPSDE(beta_max=10.0), t)
    assert len(traces) == 1
    assert float(first[0]) > float(second[0])


def test_a_process_without_its_pair_says_so():
    class Nothing(SDE):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must define sigma"):
        Nothing().sigma(jnp.ones(1))


# --- Discrete chains ------------------------------------------------------------------------------


def test_the_chain_of_vp_is_ddpms():
    """alpha_bar from its definition, in float64."""
    betas = np.linspace(0.1 / 1000, 20.0 / 1000, 1000)
    alpha_bar = np.cumprod(1.0 - betas)
    chain = discretization(PUBLISHED["vp"]).chain(1000)
    # A sum of up to 1000 logarithms, added up in pairs: some roundings of 6e-8 of its 10 or less.
    np.testing.assert_allclose(chain.alpha, np.sqrt(alpha_bar), rtol=1e-5)
    np.testing.assert_allclose(chain.sigma, np.sqrt(1.0 - alpha_bar), rtol=1e-5)


def test_the_chain_of_ve_is_smlds():
    chain = discretization(PUBLISHED["ve"]).chain(232)
    np.testing.assert_allclose(chain.sigma, np.geomspace(50.0, 0.01, 232), rtol=1e-5)
    np.testing.assert_array_equal(chain.alpha, np.ones(232))


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_levels_lead_from_the_least_time_to_the_last(name):
    """VP counts from the data on, VE from the noise on: as the networks were published."""
    sde, t = PUBLISHED[name], jnp.asarray([0.0, 0.4, 1.0])
    expected = [0.0, 99.6, 249.0] if name == "vp" else [249.0, 149.4, 0.0]
    np.testing.assert_allclose(discretization(sde).level(t, 250), expected, rtol=1e-6)
    # The chain's sigma at t's level is near the process's: neighbouring levels differ by this.
    row = np.round(expected).astype(int)[1:]
    sigma = discretization(sde).chain(250).sigma[row]
    np.testing.assert_allclose(sigma, sde.sigma(t[1:]), rtol=0.02)


def test_snapping_is_the_originals():
    level = jnp.asarray([0.999, 3.5, 4.5, 4.51])
    told, row = discretization(PUBLISHED["vp"]).snap(
        level
    )  # the network is told the level as it is
    np.testing.assert_array_equal(told, level)
    np.testing.assert_array_equal(row, [0, 3, 4, 4])
    for whole in discretization(PUBLISHED["ve"]).snap(level):  # half to even
        np.testing.assert_array_equal(whole, [1, 4, 4, 5])


@pytest.mark.parametrize("name", ["subvp", "own"])
def test_other_processes_have_no_chain(name):
    with pytest.raises(
        ValueError,
        match=r"num_levels: .* has no discrete chain; with one are VPSDE, VESDE, DiscreteVPSDE",
    ):
        discretization(PROCESSES[name]).chain(1000)


def test_each_process_of_the_package_has_a_case():
    assert {*processes.PROCESSES.values()} <= {type(sde) for sde in PROCESSES.values()}


def test_jit_tells_processes_of_as_many_constants_apart():
    """What decides whether a compiled program is used again: the structures' equality, where their
    hashes meet in its table (some 1 of 128 pairs)."""
    structures = [jax.tree.structure(process) for process in PROCESSES.values()]
    for index, structure in enumerate(structures):
        assert structure not in structures[:index]
    assert jax.tree.structure(VPSDE(0.2, 10.0)) == jax.tree.structure(VPSDE())
    assert jax.tree.leaves(VPSDE(0.2, 10.0)) == [0.2, 10.0]


BETAS = tuple(np.linspace(0.01, 0.3, 20).tolist())


def test_interpolation_is_numpys_and_its_slopes_are_those_between_the_places():
    places, values = jnp.array([-1.0, 0.0, 0.5, 2.0]), jnp.array([3.0, 1.0, 4.0, 4.5])
    x = jnp.array([-2.0, -1.0, -0.3, 0.2, 0.5, 1.9, 2.0, 7.0])
    np.testing.assert_allclose(
        interpolate(x, places, values), np.interp(x, places, values), rtol=1e-6
    )
    slopes = jax.vmap(jax.grad(lambda x: interpolate(x[None], places, values)[0]))(x)
    exact = [0.0, -2.0, -2.0, 6.0, 1 / 3, 1 / 3, 1 / 3, 0.0]  # at a place that of what follows
    np.testing.assert_allclose(slopes, exact, rtol=1e-6)


def test_a_process_of_betas_is_the_chain_at_its_levels():
    """x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z, at the times k / (N - 1)."""
    sde, betas = DiscreteVPSDE(BETAS), np.asarray(BETAS)
    t = jnp.linspace(0.0, 1.0, len(betas))
    alpha2 = np.cumprod(1.0 - betas)
    np.testing.assert_allclose(sde.alpha(t) ** 2, alpha2, rtol=1e-6)
    np.testing.assert_allclose(sde.sigma(t) ** 2, 1.0 - alpha2, rtol=1e-6)
    factor, std = sde.transition(t[:-1], t[1:])
    np.testing.assert_allclose(factor, np.sqrt(1.0 - betas[1:]), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(betas[1:]), rtol=1e-5)
    np.testing.assert_allclose(sde.inverse_log_snr(sde.log_snr(t)), t, atol=1e-6)
    chain = discretization(sde).chain(20)
    np.testing.assert_allclose(chain.alpha**2, alpha2, rtol=1e-6)
    np.testing.assert_allclose(discretization(sde).level(t, 20), np.arange(20), rtol=1e-6)
    step = discretization(sde).step(t[1:], 19)
    np.testing.assert_allclose(1.0 + step.f, np.sqrt(1.0 - betas[1:]), rtol=1e-6)


def test_between_its_levels_the_drift_is_that_of_the_pair():
    sde = DiscreteVPSDE(BETAS)
    t = (jnp.arange(19.0) + 0.4) / 19.0
    derived = jax.jvp(sde.log_alpha, (t,), (jnp.ones_like(t),))[1]
    np.testing.assert_allclose(sde.drift_rate(t), derived, rtol=1e-4)
    np.testing.assert_allclose(sde.diffusion(t) ** 2, -2.0 * sde.drift_rate(t), rtol=1e-5)
    for end in (0.0, 1.0):  # the first and the last segment's
        beta = -19.0 * np.log1p(-BETAS[1 if end == 0 else -1])
        np.testing.assert_allclose(sde.beta(jnp.full(1, end)), beta, rtol=1e-5)


@pytest.mark.parametrize("betas", [(), (0.1,), (0.1, -0.1), (0.1, 1.0, 0.1), (0.1, 1.1)])
def test_betas_that_are_none(betas):
    with pytest.raises(ValueError, match=r"^betas = .*: allowed are at least two numbers above 0"):
        DiscreteVPSDE(betas)


def test_only_as_many_levels_as_betas():
    with pytest.raises(ValueError, match="num_levels = 10: allowed are 0, 20"):
        discretization(DiscreteVPSDE(BETAS)).chain(10)
