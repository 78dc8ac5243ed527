"""The probability flow by every solver against its exact solution, to the latents and back."""

from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde import oracle
from score_sde.integrate import SOLVERS, STEP_CONTROLS, SolveError
from score_sde.samplers import ProbabilityFlow
from score_sde.samplers.ode import slerp
from score_sde.sde import expand
from tests.cases import FIRST, PROCESSES, process_of, thorough

DIMS, NUM = 5, 6


@pytest.fixture(scope="module")
def gaussian():
    """Anisotropic, its variances from 1e-3 to 1 along axes of its own."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(DIMS, DIMS)))[0]
    covariance = axes @ np.diag(np.geomspace(1e-3, 1.0, DIMS)) @ axes.T
    mean = np.linspace(-0.5, 0.5, DIMS)
    return oracle.gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32))


def carried(gaussian, sde, x: np.ndarray, start: float, end: float) -> np.ndarray:
    """The exact flow, in float64: along each axis the distance from the mean stays the same number
    of standard deviations."""
    axes, variances, mean = (
        np.asarray(a[0], np.float64) for a in (gaussian.axes, gaussian.variances, gaussian.means)
    )
    times = jnp.asarray([start, end])
    alpha, sigma = (np.asarray(a, np.float64) for a in (sde.alpha(times), sde.sigma(times)))
    std = np.sqrt(alpha[:, None] ** 2 * variances + sigma[:, None] ** 2)
    return alpha[1] * mean + (x - alpha[0] * mean) @ axes * (std[1] / std[0]) @ axes.T


def flow_of(solver: str, **settings) -> ProbabilityFlow:
    steps = {"num_steps": 2000} if solver == "euler" else {}
    return ProbabilityFlow(solver=solver, denoise=False, **steps, **settings)


def test_ten_steps_are_taken_at_any_tolerance(gaussian):
    """An error estimate that vanishes by chance must not make a step of a third of the way."""
    sde, flow = PROCESSES["vp"], ProbabilityFlow(rtol=0.9, atol=0.9, denoise=False)
    nfe = flow.sample(jax.random.key(0), sde, gaussian.score(sde), shape=(NUM, DIMS)).nfe
    assert nfe.min() >= 61  # a first evaluation, and six new ones of each step


# Every process under one solver is a matter of tests/samplers/test_against_oracle.py.
@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_follows_the_exact_flow(gaussian, name, solver):
    truth, sde, flow = PROCESSES[name], process_of(name), flow_of(solver)
    x = truth.prior_std() * jax.random.normal(jax.random.key(0), (NUM, DIMS))
    out = flow.sample(jax.random.key(1), sde, gaussian.score(sde), x, trajectory=True)
    exact = carried(gaussian, truth, np.asarray(x, np.float64), truth.T, truth.t_min)
    # The errors of some hundred steps, each of 1e-5 at most, add up, but shrink with the state: its
    # size falls to 1 at the end. Heun's are as many as its steps are, hundreds. Euler's is of first
    # order: half a step's length, 1/4000, times the second derivative over the size, which is
    # (d log std / dt)^2, up to log(std_T / std_0) / (1 - t_min) squared and so some 10^2.
    bound = {"euler": 0.1, "heun": 2e-3}.get(solver, 2e-4)
    assert np.abs(np.asarray(out.x) - exact).max() < bound
    assert out.trajectory.shape == (50, NUM, DIMS)
    np.testing.assert_allclose(out.trajectory[0], x, rtol=1e-6)
    np.testing.assert_allclose(out.trajectory[-1], out.x, rtol=1e-4, atol=1e-4)


# No cache keeps a program with a callback: each solver has one of the two controls.
@pytest.mark.parametrize(("solver", "step_control"), [*zip(SOLVERS, cycle(STEP_CONTROLS))])
def test_nfe_is_what_was_evaluated(solver, step_control):
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -3.0 * x  # not that of the prior, whose flow stands still

    steps = 21 if solver == "euler" else None
    flow = ProbabilityFlow(1e-3, 1e-3, solver, step_control, steps)
    x = jnp.ones((1, 3))
    out = flow.sample(jax.random.key(0), PROCESSES["vp"], score, x, trajectory=True)
    jax.effects_barrier()
    assert len(calls) == int(out.nfe[0])
    assert steps is None or out.nfe.tolist() == [22]  # and the denoising


@pytest.mark.parametrize(
    ("name", "step_control"), [*((name, "sample") for name in FIRST), *thorough(("vp", "batch"))]
)
def test_there_and_back_returns_the_data(gaussian, name, step_control):
    truth, sde = PROCESSES[name], process_of(name)
    flow = ProbabilityFlow(step_control=step_control)
    score, x0 = gaussian.score(sde), gaussian.sample(jax.random.key(0), NUM)
    latents = flow.encode(sde, score, x0)
    exact = carried(gaussian, truth, np.asarray(x0, np.float64), truth.t_min, truth.T)
    std = float(truth.prior_std())
    # As above; on the way up the steps' errors grow with the state, by std_T / std_0 <= 32 std.
    np.testing.assert_allclose(latents.x, exact, atol=2e-3 * std)
    back = flow.decode(sde, score, latents.x)  # never denoised, though the settings would
    np.testing.assert_allclose(back.x, x0, atol=1e-3)
    assert latents.nfe.shape == back.nfe.shape == (NUM,)
    denoised = flow.sample(jax.random.key(1), sde, score, latents.x)
    assert np.all(np.asarray(denoised.nfe) == np.asarray(back.nfe) + 1)


def stiff_for_some(x, t, rate):
    """A score that the flow of each sample follows at a rate of its own."""
    return -expand(rate, x) * x


def test_a_sample_depends_on_its_batch_only_where_the_batch_has_one_step():
    sde, x = PROCESSES["vp"], jax.random.normal(jax.random.key(0), (4, 3))
    rates = jnp.asarray([2.0, 3.0, 30.0, 2.0])

    def decoded(flow, size):
        score = Partial(stiff_for_some, rate=rates[:size])
        return flow.decode(sde, score, x[:size])

    alone, together = ProbabilityFlow(), ProbabilityFlow(step_control="batch")
    small, large = decoded(alone, 2), decoded(alone, 4)
    assert small.nfe.tolist() == large.nfe[:2].tolist()
    # The same steps: what differs is the rounding of a vectorized sum.
    np.testing.assert_allclose(small.x, large.x[:2], rtol=1e-6)
    assert int(large.nfe[2]) > 1.2 * int(large.nfe[0])
    small, large = decoded(together, 2), decoded(together, 4)
    assert len(set(large.nfe.tolist())) == 1
    assert int(large.nfe[0]) > 1.2 * int(small.nfe[0])


def test_only_a_common_step_couples_the_samples():
    assert not ProbabilityFlow().coupled
    assert ProbabilityFlow(step_control="batch").coupled
    assert not ProbabilityFlow(solver="euler", step_control="batch", num_steps=3).coupled


def of_its_class(x, t, labels):
    """VP's score of data N(label, 1)."""
    return -(x - expand(PROCESSES["vp"].alpha(t) * labels, x))


@pytest.mark.parametrize("step_control", STEP_CONTROLS)
def test_labels_belong_to_the_samples(step_control):
    sde, flow = PROCESSES["vp"], ProbabilityFlow(step_control=step_control)
    x0, labels = jnp.zeros((3, 2)), jnp.asarray([-1.0, 0.0, 2.0])
    score = Partial(of_its_class, labels=labels)
    latents = flow.encode(sde, score, x0)
    # The variance is 1 at every time: only the mean moves, from label to alpha(T) label.
    moved = np.asarray(sde.alpha(jnp.asarray([sde.t_min, sde.T]))) @ np.asarray([-1.0, 1.0])
    np.testing.assert_allclose(latents.x, np.outer(labels, [moved, moved]), atol=1e-4)
    np.testing.assert_allclose(flow.decode(sde, score, latents.x).x, x0, atol=1e-4)


def not_a_number_late(x, t):
    return jnp.where(t[0] > 0.5, jnp.nan, -x)


@pytest.mark.parametrize("step_control", ["sample", *thorough("batch")])
def test_a_failed_solve_tells_the_solvers_reason(step_control):
    sde, x = PROCESSES["vp"], jnp.ones((3, 2))
    hopeless = ProbabilityFlow(1e-12, 1e-12, step_control=step_control)
    told = "the solve failed for 3 of 3 samples: the flow is too steep .* in max_steps = 4096"
    for follow in (hopeless.encode, hopeless.decode):
        with pytest.raises(SolveError, match=told):
            follow(sde, lambda x, t: -3.0 * x, x)
    short = ProbabilityFlow(step_control=step_control, max_steps=11)  # ten are the least
    with pytest.raises(SolveError, match=r"3 of 3 samples: .* in max_steps = 11$") as error:
        short.encode(sde, lambda x, t: -3.0 * x, x)
    assert error.value.larger == ("max_steps", "rtol", "atol")
    fixed = ProbabilityFlow(solver="euler", num_steps=9, step_control=step_control)
    told = "the solve failed for 3 of 3 samples: the score.* is not a finite number"
    for follow in (fixed.encode, fixed.decode):
        with pytest.raises(SolveError, match=told) as error:
            follow(sde, not_a_number_late, x)
        assert error.value.larger == ()


def test_within_a_jitted_function_a_failed_solve_is_no_sample():
    """Nothing can be raised there; the state it stopped at must not pass for one."""
    sde = PROCESSES["vp"]

    @jax.jit
    def drawn(x):
        return ProbabilityFlow().sample(jax.random.key(0), sde, not_a_number_at_some, x).x

    x = drawn(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]]))
    assert np.isfinite(x[0]).all() and np.isnan(x[1]).all()


def not_a_number_at_some(x, t):
    return jnp.where((t[0] < 0.5) & (x < 0.0), jnp.nan, -x)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"solver": "rk4"}, "solver = 'rk4': allowed are tsit5, dopri5, dopri8, heun, euler"),
        ({"step_control": "all"}, "step_control = 'all': allowed are sample, batch"),
        ({"solver": "euler", "num_steps": 0}, "num_steps = 0: allowed are integers"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ProbabilityFlow(**settings)


def test_slerp_turns_by_equal_angles_and_keeps_the_ends():
    rng = np.random.default_rng(0)
    weights = jnp.linspace(0.0, 1.0, 7)
    for scale in (1.0, 50.0):  # VP's latents, VE's
        a, b = (jnp.asarray(scale * rng.normal(size=(4, 2, 3)), jnp.float32) for _ in range(2))
        path = np.asarray(slerp(a, b, weights), np.float64)
        assert path.shape == (4, 7, 2, 3)
        # float32's rounding, 1e-7 relative, through a dozen operations
        np.testing.assert_allclose(path[:, 0], a, rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(path[:, -1], b, rtol=1e-5, atol=1e-5 * scale)
        flat = path.reshape(4, 7, 6)
        norms = np.linalg.norm(flat, axis=-1)
        straight = norms[:, :1] + np.linspace(0, 1, 7) * (norms[:, -1:] - norms[:, :1])
        np.testing.assert_allclose(norms, straight, rtol=1e-5)
        unit = flat / norms[..., None]
        cosines = np.sum(unit[:, 1:] * unit[:, :-1], axis=-1)
        angles = np.arccos(np.sum(unit[:, 0] * unit[:, -1], axis=-1))
        np.testing.assert_allclose(np.arccos(cosines), np.outer(angles / 6, np.ones(6)), rtol=1e-3)
        # all in the plane of the two
        plane = np.linalg.qr(np.stack([unit[:, 0], unit[:, -1]], axis=2))[0]
        inside = np.einsum("bde,bfe,bnf->bnd", plane, plane, flat)
        np.testing.assert_allclose(inside, flat, atol=1e-5 * scale)


def test_slerp_of_equal_and_nearly_equal_directions():
    a = jnp.asarray([[3.0, 4.0], [3.0, 4.0]])
    b = jnp.asarray([[3.0, 4.0], [6.0, 8.0 + 1e-5]])
    middle = np.asarray(slerp(a, b, jnp.asarray([0.5])))[:, 0]
    np.testing.assert_allclose(middle, [[3.0, 4.0], [4.5, 6.0]], rtol=1e-5)
