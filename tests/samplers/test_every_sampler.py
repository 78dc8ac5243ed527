"""What holds of every sampler: parts, trajectories, seeds, starts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.samplers import (
    DDIM,
    AnnealedLangevin,
    ExponentialMultistep,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from score_sde.score import denoise
from tests.cases import PUBLISHED, overlapping_mixture

SAMPLERS = {
    "euler_maruyama": PredictorCorrector(6),
    "ancestral+langevin": PredictorCorrector(6, "ancestral", "langevin"),
    "reverse_diffusion+ald": PredictorCorrector(6, "reverse_diffusion", "ald", 2),
    "probability_flow predictor": PredictorCorrector(6, probability_flow=True),
    "annealed_langevin": AnnealedLangevin(6, 2),
    "ode": ProbabilityFlow(rtol=1e-3, atol=1e-3),
    "ddim": DDIM(6),
    "ddim, eta = 1": DDIM(6, eta=1.0),
    "dpmpp": ExponentialMultistep(6, 3),
    "dpmpp, SDE": ExponentialMultistep(6, 2, eta=1.0),
    "unipc": ExponentialMultistep(6, 3, corrector=True),
    "heun, churn": Heun(6, churn=3.0),
}


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(4)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_parts_make_the_whole_and_trajectories_end_in_it(sampler, name, mixture):
    """An image depends on the key and its index alone, not on its batch, to 1e-5 of the states'
    size at T."""
    sde, key = PUBLISHED[name], jax.random.key(7)
    score, std = mixture.score(sde), float(sde.prior_std())
    whole = sampler.sample(key, sde, score, shape=(6, 2, 2, 1), trajectory=True)
    parts = [sampler.sample(key, sde, score, shape=(2, 2, 2, 1), first=i) for i in (0, 2, 4)]
    joined = np.concatenate([part.x for part in parts])
    np.testing.assert_allclose(joined, whole.x, rtol=1e-5, atol=1e-5 * std)
    np.testing.assert_array_equal(np.concatenate([part.nfe for part in parts]), whole.nfe)
    assert all(part.trajectory is None for part in parts)
    assert whole.trajectory.shape[1:] == (6, 2, 2, 1) and len(whole.trajectory) in (6, 7, 13, 50)
    # From the prior on to the last state before denoising.
    assert 0.3 < float(jnp.var(whole.trajectory[0])) / std**2 < 3.0
    again = sampler.sample(key, sde, score, whole.trajectory[0])
    np.testing.assert_allclose(again.x, whole.x, rtol=1e-5, atol=1e-5 * std)
    other = sampler.sample(jax.random.key(8), sde, score, shape=(6, 2, 2, 1))
    assert np.abs(np.asarray(other.x - whole.x)).max() > 0.1

    last = whole.trajectory[-1]
    undenoised = replace(sampler, denoise=False).sample(key, sde, score, shape=(6, 2, 2, 1))
    np.testing.assert_allclose(undenoised.x, last, rtol=1e-5, atol=1e-5 * std)
    np.testing.assert_array_equal(undenoised.nfe + 1, whole.nfe)
    t = jnp.full(6, sampler.last_time(sde))
    np.testing.assert_allclose(denoise(sde, score, last, t), whole.x, rtol=1e-5, atol=1e-5 * std)

    some = sampler.sample(key, sde, score, shape=(6, 2, 2, 1), trajectory=4)
    np.testing.assert_allclose(some.x, whole.x, rtol=1e-5, atol=1e-5 * std)
    assert len(some.trajectory) == 4
    if isinstance(sampler, ProbabilityFlow):  # its times are chosen, and these are others
        some, kept = some.trajectory[jnp.asarray([0, -1])], [0, -1]
    else:
        some = some.trajectory
        kept = np.rint(np.linspace(0, len(whole.trajectory) - 1, 4)).astype(int)
    expected = np.asarray(whole.trajectory)[kept]
    np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5 * std)


def test_a_trajectory_has_two_ends(mixture):
    with pytest.raises(ValueError, match="trajectory = 1: allowed are True, integers from 2 on"):
        DDIM(3).sample(
            jax.random.key(0),
            PUBLISHED["vp"],
            mixture.score(PUBLISHED["vp"]),
            shape=(2, 4),
            trajectory=1,
        )
