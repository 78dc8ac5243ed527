"""Coverage: the interval is Student's, so right draws have the share that it is named by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from score_sde import inverse


@pytest.mark.parametrize("number", [2, 4, 20])
def test_the_interval_is_that_of_a_further_draw(number):
    """Just within and just beyond its ends, by another library's quantiles."""
    draws = np.random.default_rng(0).normal(2.0, 3.0, (5, number, 1)).astype(np.float32)
    mean, std = draws.mean(axis=1), draws.std(axis=1, ddof=1)
    for share in (0.5, 0.9):
        half = stats.t.ppf(0.5 * (1 + share), number - 1) * std * np.sqrt(1 + 1 / number)
        for side in (-1.0, 1.0):
            truth = np.stack([mean + side * (1 + shift) * half for shift in (-1e-3, 1e-3)], axis=1)
            found = inverse.coverage(jnp.asarray(draws[..., None]), jnp.asarray(truth), share)
            np.testing.assert_array_equal(found, 0.5)  # the first of the two is within


def test_right_draws_have_the_share():
    keys = jax.random.split(jax.random.key(0))
    draws, truth = jax.random.normal(keys[0], (500, 4, 20)), jax.random.normal(keys[1], (500, 20))
    for share in (0.5, 0.9):
        # 10^4 numbers, in fours with the same draws' errors at most: a deviation below 0.01.
        assert abs(inverse.coverage(draws, truth, share).mean() - share) < 0.03
    assert inverse.coverage(0.1 * draws, truth, 0.9).mean() < 0.5  # draws that are too sure


def test_draws_without_spread_hold_what_is_exact():
    found = inverse.coverage(jnp.ones((1, 3, 4)), jnp.asarray([[1.0, 1.0, 1.5, 0.0]]), 0.9)
    np.testing.assert_array_equal(found, 0.5)


def test_one_draw_has_no_interval():
    with pytest.raises(ValueError, match="draws = 1: allowed are at least 2"):
        inverse.coverage(jnp.ones((1, 1, 4)), jnp.ones((1, 4)), 0.9)
