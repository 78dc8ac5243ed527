"""Editing with exact scores: SDEdit's ends, the flow between, and the map between classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import editing, oracle
from score_sde.samplers import (
    DDIM,
    AnnealedLangevin,
    ExponentialMultistep,
    PredictorCorrector,
    ProbabilityFlow,
)
from score_sde.samplers.base import normal
from score_sde.sde import VPSDE
from score_sde.spaces import item_keys
from tests.cases import EVERY, process_of

KEY = jax.random.key(0)
MEAN, VARIANCES = jnp.asarray([0.4, -0.2]), jnp.asarray([0.5, 0.05])
DATA = oracle.gaussian(MEAN, jnp.diag(VARIANCES))
X0 = jnp.asarray([[0.3, -0.1], [-1.0, 0.2], [1.2, -0.6]])
SDE = VPSDE()
by_process = pytest.mark.parametrize("name", EVERY)


def levels(sde, time):
    t = jnp.full(1, time)
    return float(sde.alpha(t)[0]), float(sde.sigma(t)[0])


def flowed(sde, x, start, end, mean=MEAN, variances=VARIANCES):
    """The flow of a Gaussian from one time to another: each axis keeps its standardised value."""
    (a, s), (b, r) = levels(sde, start), levels(sde, end)
    x, mean, variances = (np.asarray(each, np.float64) for each in (x, mean, variances))
    growth = np.sqrt((b**2 * variances + r**2) / (a**2 * variances + s**2))
    return b * mean + growth * (x - a * mean)


def noised(sde, time):
    alpha, sigma = levels(sde, time)
    return alpha * X0 + sigma * normal(item_keys(KEY, len(X0)), 0, (2,))


@pytest.mark.parametrize(
    "sampler",
    [ProbabilityFlow(), ExponentialMultistep(5), PredictorCorrector(5), AnnealedLangevin(5)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_strength_1_is_plain_sampling_from_the_same_noise(sampler):
    found = editing.edit(KEY, SDE, DATA.score(SDE), sampler, X0, 1.0)
    plain = sampler.sample(KEY, SDE, DATA.score(SDE), noised(SDE, SDE.T))
    np.testing.assert_array_equal(found.x, plain.x)
    np.testing.assert_array_equal(found.nfe, plain.nfe)


@by_process
def test_hardly_any_noise_returns_the_input(name):
    """At a level sigma the result is off by about the noise that was drawn, and the data's score
    moves it by less than that: the prior's spread is above 7 sigma."""
    sde = process_of(name)
    time = 1.5 * sde.t_min
    alpha, sigma = levels(sde, time)
    found = editing.edit(KEY, sde, DATA.score(sde), DDIM(2), X0, time / sde.T).x
    assert 7.0 * sigma < float(jnp.sqrt(VARIANCES).min())
    assert float(jnp.max(jnp.abs(found - X0))) < 5.0 * sigma + 2.0 * (1.0 - alpha)


@by_process
@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_the_flow_goes_back_from_the_level_reached(name, strength):
    """By a solver, and by a sampler whose grid then lies below the level."""
    sde = process_of(name)
    time, score = strength * sde.T, DATA.score(sde)
    exact = flowed(sde, noised(sde, time), time, sde.t_min)
    # EDM's states are of size 24 at 0.3. By a tolerance of 1e-5 the error is 1.1e-4.
    flow = ProbabilityFlow(denoise=False, rtol=3e-6, atol=3e-6)
    found = editing.edit(KEY, sde, score, flow, X0, strength)
    # The discrete chain's beta jumps at each level, where a step's error is some times what the
    # solver's estimate says.
    np.testing.assert_allclose(found.x, exact, atol=5e-4 if name == "discrete" else 1e-4)
    # Of third order: 20, 40 and 80 steps leave up to 4e-3, 7e-4 and 1e-4 (sub-VP, 0.7).
    sampler = ExponentialMultistep(40, denoise=False)
    found = editing.edit(KEY, sde, score, sampler, X0, strength)
    np.testing.assert_allclose(found.x, exact, atol=2e-3)
    assert found.nfe.tolist() == [40] * 3


def test_parts_are_drawn_as_the_whole():
    sampler, score = DDIM(3, eta=1.0), DATA.score(SDE)
    whole = editing.edit(KEY, SDE, score, sampler, X0, 0.5).x
    part = editing.edit(KEY, SDE, score, sampler, X0[1:], 0.5, first=1).x
    np.testing.assert_allclose(part, whole[1:], rtol=1e-5, atol=1e-6)  # batches of another size


@by_process
def test_another_class_is_the_affine_map_between_their_gaussians(name):
    """There by the flow of N(MEAN, VARIANCES), back by that of the other class."""
    sde = process_of(name)
    mean, variances = jnp.asarray([-0.5, 1.0]), jnp.asarray([0.1, 0.3])
    other, flow = oracle.gaussian(mean, jnp.diag(variances)), ProbabilityFlow()
    found = editing.relabel(sde, DATA.score(sde), other.score(sde), X0, flow)
    latents = flowed(sde, X0, sde.t_min, sde.T)
    exact = flowed(sde, latents, sde.T, sde.t_min, mean, variances)
    # Tolerances of 1e-5 each way. VE's latents are 50 times larger, and so is their error, which
    # the way back divides by as much.
    np.testing.assert_allclose(found.x, exact, atol=2e-3)
    there = flow.encode(sde, DATA.score(sde), X0)
    assert (np.asarray(found.nfe) > np.asarray(there.nfe)).all()
    same = editing.relabel(sde, DATA.score(sde), DATA.score(sde), X0, flow).x
    np.testing.assert_allclose(same, X0, atol=2e-3)


@pytest.mark.parametrize(
    ("sampler", "strength", "line"),
    [
        (DDIM(3), 0.0, "strength = 0.0: allowed are numbers above 0.001, up to 1"),
        (DDIM(3), 1e-3, "strength = 0.001: allowed are numbers above 0.001"),
        (DDIM(3, t_min=0.1), 0.1, "strength = 0.1: allowed are numbers above 0.1, up to 1"),
        (DDIM(3), 1.1, "strength = 1.1: allowed are "),
        (PredictorCorrector(30, faithful=True), 0.5, "faithful = True: allowed are False"),
        (DDIM(3), float("nan"), "strength = nan: allowed are "),
    ],
)
def test_mistakes(sampler, strength, line):
    with pytest.raises(ValueError, match=line):
        editing.edit(KEY, SDE, DATA.score(SDE), sampler, X0, strength)


def test_pixels_in_place_of_the_models_range_are_refused():
    with pytest.raises(ValueError, match=r"x0.dtype = 'uint8': allowed are floats"):
        editing.edit(KEY, SDE, DATA.score(SDE), DDIM(3), jnp.zeros((2, 2), jnp.uint8), 0.5)
