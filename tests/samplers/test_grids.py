"""The times of samplers: where grids have them, and on a chain's levels."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.discrete import DiscreteVPSDE, discretization
from score_sde.samplers import DDIM, grids
from score_sde.score import Model
from tests.cases import PROCESSES, PUBLISHED

CONTINUOUS = [grid for grid in grids.GRIDS if grid not in grids.SPACINGS]


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("grid", "rho"), [*((grid, 7) for grid in CONTINUOUS), ("karras", 3)])
def test_grids_fall_from_end_to_end(name, grid, rho):
    sde = PROCESSES[name]
    times = np.asarray(grids.times(grid, sde, 12, sde.t_min, float(rho)))
    assert len(times) == (12 if grid == "paper" else 13)
    # T and t_min themselves, in float32.
    assert times[0] == np.float32(sde.T) and times[-1] == np.float32(sde.t_min)
    assert np.all(np.diff(times) < 0)
    nu = np.exp(-0.5 * np.asarray(sde.log_snr(jnp.asarray(times)), float))
    spaced = {"uniform": times, "paper": times, "log_snr": np.log(nu), "karras": nu ** (1 / rho)}
    vp_time = PUBLISHED["vp"].inverse_log_snr(sde.log_snr(jnp.asarray(times)))
    spaced["quadratic"] = np.sqrt(np.asarray(vp_time))
    spaced["angle"] = np.arctan(np.cbrt(2 * nu) ** 2)
    if name == "edm":  # whose own steps are even in this
        spaced["uniform"] = spaced["paper"] = times ** (1 / 7)
    steps = np.diff(spaced[grid])
    # The inverse log-SNR of a process that has none in closed form is a bisection in float32, off
    # by some 1e-7 in t; near t = 1e-3 that is 1e-4 of a step in log-SNR.
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)


CHAINS = {**PUBLISHED, "betas": DiscreteVPSDE(tuple(np.linspace(1e-3, 0.2, 100).tolist()))}


@pytest.mark.parametrize("name", ["vp", "ve", "betas"])
@pytest.mark.parametrize("num_steps", [5, 50, 99])
def test_a_discretely_trained_network_is_told_levels_of_its_chain(name, num_steps):
    """Whole ones, each once, and sigma there is the chain's: it is evaluated where it was
    trained."""
    sde, num_levels = CHAINS[name], 100
    times = grids.times("log_snr", sde, num_steps, sde.t_min, num_levels=num_levels)
    told = []

    def apply(params, x, noise, condition):
        told.append(np.asarray(noise))
        return x

    model = Model(None, sde, apply, "epsilon", "time", num_levels, "matched")
    score = model(jnp.ones((len(times), 2)), times)
    levels, chain = np.rint(told[0]).astype(int), discretization(sde).chain(num_levels)
    np.testing.assert_allclose(told[0], levels, atol=5e-3)  # log-SNR in float32 over a level's step
    assert len(set(levels)) == num_steps + 1
    # VE's chain is the process at its levels; DDPM's alpha and sigma have one ratio, not one scale.
    ratio = np.asarray(chain.alpha / chain.sigma)[levels]
    np.testing.assert_allclose(sde.alpha(times) / sde.sigma(times), ratio, rtol=1e-4)
    np.testing.assert_allclose(
        np.asarray(score)[:, 0], -1 / np.asarray(sde.sigma(times)), rtol=1e-5
    )


SPACED = {
    "leading": [84, 70, 56, 42, 28, 14, 0],
    # 99 - 100 k / 7, rounded.
    "trailing": [99, 85, 70, 56, 42, 28, 13],
    "linspace": [99, 82, 66, 50, 33, 16, 0],
}


@pytest.mark.parametrize(("grid", "levels"), SPACED.items())
@pytest.mark.parametrize("name", ["vp", "betas"])
def test_spacings_of_a_chain(name, grid, levels):
    """Every (100 // 7 = 14)th level."""
    sde = CHAINS[name]
    times = DDIM(7, grid=grid, num_levels=100).times(sde)
    snr = np.asarray(discretization(sde).chain(100).log_snr())
    np.testing.assert_allclose(sde.log_snr(times), snr[levels], rtol=1e-4)
    with pytest.raises(ValueError, match=r"^grid = .* without levels"):
        DDIM(7, grid=grid)
    assert DDIM(100, grid=grid, num_levels=100).num_steps == 100  # each level is a time


def test_leading_ends_at_any_level_below_its_second():
    sde = CHAINS["vp"]
    snr = np.asarray(discretization(sde).chain(100).log_snr())
    times = DDIM(7, grid="leading", steps_offset=13, num_levels=100).times(sde)
    np.testing.assert_allclose(sde.log_snr(times), snr[np.add(SPACED["leading"], 13)], rtol=1e-4)
    for offset in (-1, 14):
        with pytest.raises(ValueError, match=r"^steps_offset = .* 0 to 13 with num_levels = 100"):
            DDIM(7, grid="leading", steps_offset=offset, num_levels=100)
