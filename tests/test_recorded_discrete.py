"""Discretely trained networks: scores, losses and a run of the sampler, as the original recorded
them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from score_sde.losses import level_error
from score_sde.samplers import PredictorCorrector
from score_sde.score import level_score, network_score
from score_sde.sde import VESDE, VPSDE
from tests.networks import reference

# Process and parameterization; both networks have the levels 0 ... 999.
CASES = {"ve_ncsnpp_discrete": (VESDE(), "score"), "vp_ddpm_discrete": (VPSDE(), "epsilon")}


@pytest.fixture(scope="module", params=CASES)
def recorded(request, reference_dir):
    sde, parameterization = CASES[request.param]
    return reference.load(reference_dir, request.param), sde, parameterization


def test_recorded_scores(recorded):
    """Of single times and of mixed ones; against the original's float64, whose float32 is as near
    to it as ours: 1e-4 of the largest value."""
    loaded, sde, parameterization = recorded
    score = jax.jit(
        network_score(loaded.apply, sde, parameterization, "time", num_levels=1000, snap=True)
    )
    arrays = loaded.arrays
    cases = [
        (np.repeat(t, 2), arrays["x"][index], arrays["score_f64"][index])
        for index, t in enumerate(arrays["t"])
    ]
    cases.append((arrays["t_mixed"], arrays["x_mixed"], arrays["score_mixed_f64"]))
    for t, x, expected in cases:
        ours = score(loaded.params, jnp.asarray(x), jnp.asarray(t))
        error, largest = (np.abs(a).max(axis=(1, 2, 3)) for a in (ours - expected, expected))
        assert np.all(error < 1e-4 * largest), (t, error / largest)


def test_recorded_losses(recorded):
    loaded, sde, parameterization = recorded
    chain, score = sde.chain(1000), level_score(loaded.apply, parameterization)

    def score_of(x, level):
        told = (level.astype(x.dtype), chain.alpha[level], chain.sigma[level])
        return score(loaded.params, x, *told)

    x0, z = (jnp.asarray(loaded.arrays[f"loss_{what}"]) for what in ("batch", "z"))
    level = jnp.asarray(loaded.arrays["loss_labels"].astype(np.int32))
    for mean in (0, 1):
        loss = jax.jit(partial(level_error, chain, score_of, reduce_mean=bool(mean)))
        losses = loss(x0, level, z)
        # The references' own tolerance for losses in float32; in float64 see below.
        expected = loaded.arrays[f"loss_discrete_mean{mean}"]
        np.testing.assert_allclose(jnp.mean(losses), expected, rtol=1e-4)


def test_a_recorded_run_of_the_faithful_sampler(reference_dir):
    """DDPM's ancestral sampling on 24 levels, with its recorded noise."""
    loaded = reference.load(reference_dir, "vp_ddpm_discrete")
    sde, arrays = VPSDE(), loaded.arrays
    num_steps = int(arrays["pc_N"])
    score = network_score(loaded.apply, sde, "epsilon", "time", num_levels=num_steps, snap=True)
    sampler = PredictorCorrector(num_steps=num_steps, predictor="ancestral", faithful=True)
    step = jax.jit(
        lambda x, t, z: sampler.step(sde, Partial(score, loaded.params), x, t, t, z[None])
    )
    x = mean = jnp.asarray(arrays["pc_prior_randn"])
    for t, z in zip(sampler.times(sde), arrays["pc_noise"], strict=False):
        x, mean = step(x, t[None], jnp.asarray(z))
    assert 2 * sampler.nfe == arrays["pc_nfe"]  # the original counts the corrector "none", too
    result = (np.asarray(mean) + 1.0) / 2.0
    expected = arrays["pc_x_f64"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


IN_FLOAT64 = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.losses import level_error
from score_sde.score import level_score, network_score
from tests.networks import reference
from tests.test_recorded_discrete import CASES

for name, (sde, parameterization) in CASES.items():
    loaded = reference.load(Path(sys.argv[1]), name, jnp.float64)
    arrays = {key: jnp.asarray(value, float) for key, value in loaded.arrays.items()}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), loaded.params)
    score = network_score(loaded.apply, sde, parameterization, "time", num_levels=1000, snap=True)
    score = jax.jit(score)
    errors = []
    for index, t in enumerate(arrays["t"]):
        expected = arrays["score_f64"][index]
        ours = score(params, arrays["x"][index], jnp.repeat(t, 2))
        errors.append(float(jnp.abs(ours - expected).max() / jnp.abs(expected).max()))
    chain, at = sde.chain(1000), level_score(loaded.apply, parameterization)

    def score_of(x, level):
        return at(params, x, level.astype(x.dtype), chain.alpha[level], chain.sigma[level])

    level = arrays["loss_labels"].astype(int)
    losses = []
    for mean in (0, 1):
        loss = level_error(
            chain, score_of, arrays["loss_batch"], level, arrays["loss_z"], reduce_mean=bool(mean)
        )
        losses.append(float(jnp.mean(loss) / arrays[f"loss_discrete_mean{mean}_f64"]) - 1.0)
    print(name, max(errors), *losses)
"""


def test_scores_and_losses_in_float64(reference_dir, run_python):
    code = f"import sys; sys.argv = ['', {str(reference_dir)!r}]\n{IN_FLOAT64}"
    lines = run_python(code, env={"JAX_ENABLE_X64": "1"}).stdout.split("\n")
    results = {name: tuple(map(float, rest)) for name, *rest in map(str.split, filter(None, lines))}
    assert results.keys() == CASES.keys()
    for name, (score, *losses) in results.items():
        # The references' own tolerances in float64.
        assert score < 1e-9, (name, score)
        assert max(map(abs, losses)) < 1e-7, (name, losses)
