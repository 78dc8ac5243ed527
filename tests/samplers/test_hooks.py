"""What is done around the steps: projections, progress, the count of evaluations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import inverse, oracle
from score_sde.samplers import DDIM, SAMPLERS, PredictorCorrector, ProbabilityFlow
from score_sde.sde import VPSDE
from tests.cases import thorough

SDE = VPSDE()
SCORE = oracle.gaussian(jnp.zeros(2), jnp.eye(2)).score(SDE)
STEPPED = {name: make for name, make in SAMPLERS.items() if name != "ode"}


def first_is_known(x, t, keys):
    """The first component is that of a known point with the noise of t: half an inverse problem."""
    assert t.shape == keys.shape == (len(x),)
    return x.at[:, 0].set(3.0 * SDE.alpha(t))


ALIKE = ("dpmpp", "deis", "heun", "ipndm", "consistency")  # one loop serves them all
KEPT = [name for name in STEPPED if name not in ALIKE]


@pytest.mark.parametrize("name", [*KEPT, *thorough(*ALIKE)])
def test_a_projection_acts_after_each_step(name):
    sampler = STEPPED[name](num_steps=5, denoise=False)
    out = sampler.sample(
        jax.random.key(0), SDE, SCORE, shape=(3, 2), trajectory=True, project=first_is_known
    )
    times = np.asarray(sampler.times(SDE))[1:]
    expected = 3.0 * np.asarray(SDE.alpha(jnp.asarray(times)))
    np.testing.assert_allclose(out.trajectory[1:, :, 0], np.outer(expected, np.ones(3)), rtol=1e-6)
    # The other component knows nothing of it.
    plain = sampler.sample(jax.random.key(0), SDE, SCORE, shape=(3, 2))
    np.testing.assert_allclose(out.x[:, 1], plain.x[:, 1], rtol=1e-5, atol=1e-5)


def test_the_noise_of_projections_is_each_samples_own():
    def noisy(x, t, keys):
        return jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)

    sampler = STEPPED["ddim"](3, denoise=False)
    drawn = [
        sampler.sample(jax.random.key(0), SDE, SCORE, shape=(n, 2), first=first, project=noisy).x
        for n, first in ((4, 0), (2, 2))
    ]
    np.testing.assert_array_equal(drawn[0][2:], drawn[1])
    assert len(np.unique(np.asarray(drawn[0]))) == 8


def test_a_score_and_a_projection_in_each_others_place_are_refused():
    """By their arguments; what can be called with them is allowed, whatever it is."""
    key, options = jax.random.key(0), {"shape": (2, 2)}
    y = jnp.zeros((1, 2))
    project = inverse.replacement(SDE, SCORE, jnp.negative, y)
    posterior = inverse.pigdm(SDE, SCORE, jnp.negative, y, 0.1)
    with pytest.raises(ValueError, match=r"score = Replacement: allowed are functions of \(x, t\)"):
        DDIM(2).sample(key, SDE, project, **options)
    with pytest.raises(ValueError, match=r"project = PiGDM: allowed .* of \(x, t, keys\)"):
        DDIM(2).sample(key, SDE, posterior, project=posterior, **options)
    with pytest.raises(ValueError, match=r"project = <lambda>: allowed"):
        DDIM(2).sample(key, SDE, SCORE, project=jax.jit(lambda x: x), **options)
    late = functools.partial(lambda scale, x, t, *more: -scale * x, 1.0)
    found = DDIM(2).sample(key, SDE, late, project=lambda *given: given[0], **options)
    assert found.x.shape == (2, 2)


def test_the_adaptive_flow_refuses_projections():
    with pytest.raises(ValueError, match="project: allowed with samplers whose number of steps"):
        ProbabilityFlow().sample(
            jax.random.key(0), SDE, SCORE, shape=(2, 2), project=first_is_known
        )


@pytest.mark.parametrize("num_steps", [101, *thorough(1)])
def test_progress_rises_to_one_and_changes_nothing(num_steps):
    """In parts of one program, here of 3 steps: the results and evaluations are the same."""
    sampler, seen = STEPPED["ddim"](num_steps, eta=0.5), []
    arguments = (jax.random.key(0), SDE, SCORE)
    plain = sampler.sample(*arguments, shape=(3, 2), trajectory=True)
    shown = sampler.sample(*arguments, shape=(3, 2), trajectory=True, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) == -(-num_steps // 3)
    np.testing.assert_allclose(shown.x, plain.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shown.trajectory, plain.trajectory, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shown.nfe, plain.nfe)


def midpoint(sde, score, x, t, dt, step, z):
    """A predictor of the probability flow that evaluates the score twice."""
    flow = sde.probability_flow(score)
    half = x - 0.5 * dt[:, None] * flow(x, t)
    mean = x - dt[:, None] * flow(half, t - 0.5 * dt)
    return mean, mean


def test_a_predictor_that_evaluates_twice_is_counted_twice():
    sampler = PredictorCorrector(10, midpoint, "ald", 3)
    nfe = sampler.sample(jax.random.key(0), SDE, SCORE, shape=(2, 2)).nfe
    assert nfe.tolist() == [10 * (2 + 3) + 1] * 2


def metropolis(sde, score, x, t, step, z, snr, faithful):
    """A corrector that compares the score at two states, as an accept-or-reject step does."""
    e = 2.0 * jnp.square(snr * sde.sigma(t))[:, None]
    proposal = x + e * score(x, t) + jnp.sqrt(2.0 * e) * z
    closer = jnp.sum(jnp.square(score(proposal, t)) - jnp.square(score(x, t)), 1, keepdims=True) < 0
    return jnp.where(closer, proposal, x), x


def test_a_corrector_gets_the_score_itself():
    sampler = PredictorCorrector(4, "none", metropolis)
    out = sampler.sample(jax.random.key(0), SDE, SCORE, shape=(2, 2))
    assert out.nfe.tolist() == [4 * 3 + 1] * 2 and np.isfinite(np.asarray(out.x)).all()
