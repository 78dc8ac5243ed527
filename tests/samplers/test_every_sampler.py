"""What holds of every sampler: parts, trajectories, seeds, starts, evaluations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.samplers import DDIM, ProbabilityFlow
from score_sde.score import denoise
from tests.cases import (
    EACH,
    PUBLISHED,
    SAMPLER_CASES,
    only,
    overlapping_mixture,
    process_of,
    thorough,
)

SHAPE = (6, 2, 2, 1)


@pytest.fixture(scope="module")
def mixture():
    return overlapping_mixture(4)


# One of each kind: the flow, one that remembers earlier steps, one with noise.
QUICK = ("ode", "unipc", "pc")
COMPARED = only(QUICK, [which for which in EACH if which != "consistency"])


@pytest.mark.parametrize("name", ["vp", *thorough("ve")])
@pytest.mark.parametrize("which", COMPARED)
def test_parts_make_the_whole_and_trajectories_end_in_it(which, name, mixture):
    """An image depends on the key and its index alone, not on its batch, to 1e-5 of the states'
    size at T."""
    sampler, sde, key = SAMPLER_CASES[which].make(num_steps=6), process_of(name), jax.random.key(7)
    score, std = mixture.score(sde), float(sde.prior_std())

    def assert_same(first, second):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5 * std)

    whole = sampler.sample(key, sde, score, shape=SHAPE, trajectory=True)
    parts = [sampler.sample(key, sde, score, shape=(2, *SHAPE[1:]), first=i) for i in (0, 2, 4)]
    assert_same(np.concatenate([part.x for part in parts]), whole.x)
    np.testing.assert_array_equal(np.concatenate([part.nfe for part in parts]), whole.nfe)
    assert all(part.trajectory is None for part in parts)
    assert whole.trajectory.shape[1:] == SHAPE
    # From the prior on to the last state before denoising.
    assert 0.3 < float(jnp.var(whole.trajectory[0])) / std**2 < 3.0
    other = sampler.sample(jax.random.key(8), sde, score, shape=SHAPE, trajectory=True)
    assert np.abs(np.asarray(other.x - whole.x)).max() > 0.1
    last, t = whole.trajectory[-1], jnp.full(len(whole.x), sampler.last_time(sde))
    assert_same(denoise(sde, score, last, t), whole.x)

    # From the same states, without denoising, and with four states of the trajectory.
    bare = replace(sampler, denoise=False)
    again = bare.sample(key, sde, score, whole.trajectory[0], trajectory=4)
    assert_same(again.x, last)
    np.testing.assert_array_equal(again.nfe + 1, whole.nfe)
    assert len(again.trajectory) == 4
    kept = np.rint(np.linspace(0, len(whole.trajectory) - 1, 4)).astype(int)
    if isinstance(sampler, ProbabilityFlow):  # its times are chosen, and others lie between
        kept = kept[[0, -1]]
        assert_same(again.trajectory[jnp.asarray([0, -1])], np.asarray(whole.trajectory)[kept])
    else:
        assert_same(again.trajectory, np.asarray(whole.trajectory)[kept])


@pytest.mark.parametrize("which", [which for which in EACH if which != "ode"])  # test_ode.py's
def test_nfe_is_what_was_evaluated(which):
    calls = []

    def score(x, t):
        calls.append(1)
        return -x

    sampler = SAMPLER_CASES[which].make(num_steps=3)
    with jax.disable_jit():  # a program with a callback is compiled anew each time
        out = sampler.sample(jax.random.key(0), PUBLISHED["vp"], score, shape=(1, 3))
    assert len(calls) == int(out.nfe[0])


def test_a_trajectory_has_two_ends(mixture):
    sde = PUBLISHED["vp"]
    with pytest.raises(ValueError, match="trajectory = 1: allowed are True, integers from 2 on"):
        DDIM(3).sample(jax.random.key(0), sde, mixture.score(sde), shape=(2, 4), trajectory=1)


@pytest.mark.parametrize("which", EACH)
def test_the_last_time_is_one_of_the_process(which, mixture):
    sde = PUBLISHED["vp"]
    for t_min in (0.0, 1.0, 2.0, float("nan")):
        sampler = replace(SAMPLER_CASES[which].make(num_steps=5), t_min=t_min)
        with pytest.raises(ValueError, match=rf"t_min = {t_min}: .* above 0 and below T = 1"):
            sampler.sample(jax.random.key(0), sde, mixture.score(sde), shape=SHAPE)
