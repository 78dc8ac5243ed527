"""Averages of any length from those that a training wrote: their integrals, the recursion, what a
combination is worth, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from score_sde.errors import UserError
from score_sde.training.averages import keeper, restore
from score_sde.training.checkpoints import restore_ema, steps
from score_sde.training.mesh import replicated
from score_sde.training.powers import (
    GAMMAS,
    LENGTHS,
    LONGEST,
    averaged,
    combination,
    exponent,
    inner,
)
from tests.training.tiny_run import TinyRun


def profile(tau, t, gamma):
    return (gamma + 1) * tau**gamma / t ** (gamma + 1)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, LONGEST])
def test_the_exponent_gives_the_length(length):
    gamma = exponent(length)
    mean = quad(lambda x: x * profile(x, 1.0, gamma), 0, 1)[0]
    square = quad(lambda x: x**2 * profile(x, 1.0, gamma), 0, 1)[0]
    assert gamma >= 0
    np.testing.assert_allclose(np.sqrt(square - mean**2), length, rtol=1e-6)


@pytest.mark.parametrize("other", [(1.0, 0.05), (1.0, 0.2), (0.4, 0.1), (2.5, 0.07)])
def test_the_closed_form_is_the_integral(other):
    """To 1e-10: quad reports 1e-12."""
    t, gamma = 1.0, exponent(0.08)
    s, delta = other[0], exponent(other[1])
    found = inner(t, gamma, s, delta)
    both = quad(
        lambda x: profile(x, t, gamma) * profile(x, s, delta), 0, min(t, s), epsabs=0, epsrel=1e-12
    )[0]
    np.testing.assert_allclose(found, both, rtol=1e-10)
    np.testing.assert_allclose(inner(s, delta, t, gamma), found, rtol=1e-14)


def walk(number):
    """Parameters (number, 3): they settle, as a network's do, and walk at random."""
    noise = np.cumsum(np.random.default_rng(0).normal(size=(number, 3)), axis=0)
    return 3.0 * np.exp(-np.arange(number) / 50.0)[:, None] + noise / np.sqrt(number)


def directly(values, length):
    """The power-function average of all of them: value k holds from k - 1 to k."""
    share = (np.arange(len(values) + 1) / len(values)) ** (exponent(length) + 1.0)
    return np.diff(share) @ values


def test_the_recursion_is_the_integral_of_the_profile():
    """In float32, whose rounding of 400 updates is below 1e-5 of the largest, 3."""
    values = walk(400)
    powers = (jnp.full(3, jnp.nan),) * 2  # whatever there is before

    def step(powers, each):
        value, number = each
        return averaged(powers, value, number), None

    begin = averaged((jnp.zeros(3),) * 2, jnp.asarray(values[0], jnp.float32), jnp.int32(1))
    rest = jnp.asarray(values[1:], jnp.float32), jnp.arange(2, 401, dtype=jnp.int32)
    powers, _ = jax.jit(lambda powers: jax.lax.scan(step, powers, rest))(begin)
    for power, length in zip(powers, LENGTHS, strict=True):
        np.testing.assert_allclose(power, directly(values, length), atol=3e-5)


# Length, and the largest relative error of an average from 16 intervals that the test states.
@pytest.mark.parametrize(("length", "relative"), [(0.07, 5e-3), (0.15, 2e-2), (0.03, 5e-2)])
def test_a_combination_is_the_average_of_its_length(length, relative):
    """The error is the integral of (profile - combination) theta. Both have mass 1, so by Cauchy
    and Schwarz it is at most the misfit times the profile's norm times that of theta - c, for any
    c: theta's mean here."""
    values, written = walk(400), [*range(25, 401, 25)]
    kept = [directly(values[:step], each) for step in written for each in LENGTHS]
    weights, misfit = combination(written, length)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    wanted = directly(values, length)
    error = np.abs(weights @ kept - wanted)
    norm = np.sqrt(inner(1.0, exponent(length), 1.0, exponent(length)))
    spread = np.sqrt(np.mean(np.square(values - values.mean(axis=0)), axis=0))
    assert np.all(error <= misfit * norm * spread)
    assert np.linalg.norm(error) <= relative * np.linalg.norm(wanted)


def test_a_length_that_is_kept_is_the_average_itself():
    for number, length in enumerate(LENGTHS):
        weights, misfit = combination([10, 20, 30], length)
        np.testing.assert_allclose(weights, np.eye(6)[4 + number], atol=1e-9)
        assert misfit < 1e-6  # the root of float64's rounding
    assert GAMMAS[0] > GAMMAS[1]


def run_of(folder, **changes):
    run = TinyRun()
    run.num_powers = 2
    return run, run.train(folder, [(4, keeper(folder / "averages"))], **changes)


@pytest.mark.thorough
def test_what_a_run_keeps_is_found_again(tmp_path):
    run, state = run_of(tmp_path / "whole")
    run_of(tmp_path / "parts", num_steps=6)
    (tmp_path / "parts" / "averages" / "6").rename(tmp_path / "6")  # the last of the first part
    _, again = run_of(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, state, again)
    folders = [tmp_path / "whole" / name for name in ("checkpoints", "averages")]
    assert steps(folders[1]) == steps(tmp_path / "parts" / "averages") == [4, 8, 12]
    place = replicated(run.mesh)

    def at(length, step=None):
        return restore(*folders, jax.eval_shape(lambda: state.params), length, place, step)

    for number, length in enumerate(LENGTHS):
        step, found = at(length)
        assert step == 12
        # Rounded to float32 once more.
        jax.tree.map(
            lambda *each: np.testing.assert_allclose(*each, rtol=1e-6, atol=1e-7),
            found,
            state.powers[number],
        )
    weights, _ = combination([4, 8], 0.07)
    step, found = at(0.07, step=8)
    pair = jax.eval_shape(lambda: state.powers)
    written = [restore_ema(folders[1], pair, place, each, name="powers")[1] for each in (4, 8)]
    parts = np.stack([each["in"] for powers in written for each in powers])
    wanted = np.tensordot(weights, parts.astype(np.float64), 1)
    assert step == 8
    np.testing.assert_allclose(found["in"], wanted, rtol=1e-6, atol=1e-7)
    with pytest.raises(
        UserError, match=r"average = 0\.01: allowed are 0, 0\.04 to 0\.1.* up to 12"
    ):
        at(0.01)
