"""Pixels and vectors there and back, their units and bins."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracle
from score_sde.likelihood import data_log_likelihood
from score_sde.spaces import Pixels, Vectors, bits_per_dim
from tests.cases import PUBLISHED


def test_bits_are_nats_over_dims_and_log_2():
    np.testing.assert_allclose(bits_per_dim(jnp.asarray([-12 * math.log(2.0)]), 4), [3.0])


ONE = jnp.ones(())  # alpha and sigma, which uniform dequantization does not read


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("centered", [True, False])
def test_pixels_there_and_back(levels, centered):
    images = jnp.arange(levels, dtype=jnp.uint8).reshape(1, levels, 1, 1)
    for dequantize in (True, False):
        pixels = Pixels((levels, 1, 1), levels, centered, dequantize)
        noise = jnp.full(images.shape, 0.5) if dequantize else None
        x = pixels.to_model(images, noise)
        assert x.dtype == jnp.float32
        assert float(x.min()) >= (-1.0 if centered else 0.0) and float(x.max()) <= 1.0
        np.testing.assert_array_equal(pixels.from_model(x), images)
        beyond = pixels.from_model(x * 10.0)
        np.testing.assert_array_equal(beyond, jnp.clip(beyond, 0, levels - 1))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("centered", [True, False])
def test_a_uniform_model_costs_log2_levels_bits(levels, centered):
    """A density that is uniform over the range gives every pixel log2(levels) bits, whatever the
    scaling."""
    dims, keys = 12, jax.random.split(jax.random.key(0), 3)
    log_prob = jnp.full(3, -dims * np.log(2.0 if centered else 1.0))
    pixels = Pixels((2, 2, 3), levels, centered, True)
    images = jnp.zeros((3, 2, 2, 3), jnp.uint8)
    log_density = pixels.dequantized(keys, images, "uniform", ONE, ONE).log_density
    bits = pixels.figure(log_prob - log_density)
    np.testing.assert_allclose(bits, np.full(3, np.log2(levels)), rtol=1e-6)


def test_dequantized_pixels_fill_their_bins_evenly():
    pixels = Pixels((50, 50, 1), 17, centered=True, dequantize=True)
    images = jnp.full((4, 50, 50, 1), 5, jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 4)
    x = pixels.dequantized(keys, images, "uniform", ONE, ONE).x
    inside = np.asarray((x + 1.0) / 2.0 * 17 - 5)
    assert inside.min() >= 0 and inside.max() < 1 + 1e-5
    assert abs(inside.mean() - 0.5) < 4 * np.sqrt(1 / 12 / inside.size)
    assert not np.allclose(inside[0], inside[1])


IMAGES = np.full((3, 2, 2, 1), 16, np.uint8)
ROWS = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("space", "data", "allowed"),
    [
        (Pixels((2, 2, 1), 17, True, True), IMAGES[0], r"uint8 \(n, 2, 2, 1\)"),
        (Pixels((2, 2, 1), 17, True, True), IMAGES[:0], "n of at least 1"),
        (Pixels((2, 2, 1), 17, True, True), IMAGES.astype(np.float32), "float32.* uint8"),
        (Pixels((2, 2, 1), 17, True, True), IMAGES + np.uint8(1), "17.* 0 to 16"),
        (Vectors((0, 0), (1, 1)), ROWS[:, :1], r"\(3, 1\).*\(n, 2\)"),
        (Vectors((0, 0), (1, 1)), ROWS[0], r"\(n, 2\)"),
        (Vectors((0, 0), (1, 1)), ROWS[:0], "n of at least 1"),
        (Vectors((0, 0), (1, 1)), ROWS.astype(str), "numbers"),
        (Vectors((0, 0), (1, 1)), ROWS.astype(object), "object.* numbers"),
        (Vectors((0, 0), (1, 1)), ROWS * np.nan, "finite"),
        (Vectors((0, 0), (1, 1)), ROWS.astype(np.float64) * 1e39, "finite in float32"),
    ],
)
def test_data_of_another_kind_are_refused(space, data, allowed):
    good = IMAGES if isinstance(space, Pixels) else ROWS.astype(np.float64)
    kind = np.uint8 if isinstance(space, Pixels) else np.float32
    assert space.check(good).dtype == kind and space.check(good).shape[1:] == space.shape
    with pytest.raises(ValueError, match=allowed):
        space.check(data)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": ()}, ("mean", "finite")),
        ({"mean": (0.0, math.nan)}, ("mean", "finite")),
        ({"std": (1.0,) * 3}, ("std", "2 columns")),
        ({"std": (1.0, 0.0)}, ("std", "positive")),
        ({"bin_width": -1.0}, ("bin_width", "positive")),
        ({"bin_width": (1.0, 1.0, 1.0)}, ("bin_width", "2 columns")),
    ],
)
def test_constants_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError) as caught:
        Vectors(**{"mean": (0.0, 0.0), "std": (1.0, 1.0)} | settings)
    assert all(word in str(caught.value) for word in words)


def test_equal_vectors_are_equal_whatever_they_are_made_of():
    """They are static arguments of jit: equal ones must not compile anew."""
    one = Vectors((1.0, 2.0), (3.0, 4.0), 0.5)
    other = Vectors(np.float32([1, 2]), [3, 4], np.asarray([0.5, 0.5]))
    assert one == other and hash(one) == hash(other) and one.bin_width == (0.5, 0.5)
    assert one.has_bins and not Vectors((1.0,), (3.0,)).has_bins


def test_vectors_there_and_back():
    vectors = Vectors((5.0, -1e3), (2.0, 0.5))
    data = jnp.asarray([[5.0, -1e3], [9.0, -1001.0]])
    x = vectors.to_model(data)
    np.testing.assert_array_equal(x, [[0.0, 0.0], [2.0, -2.0]])
    np.testing.assert_array_equal(vectors.from_model(x), data)
    np.testing.assert_array_equal(vectors.from_model(x[None]), data[None])  # a trajectory
    assert not vectors.dequantize
    with pytest.raises(ValueError, match="bin_width"):
        vectors.to_model(data, jnp.zeros((2, 2)))


def test_the_density_of_vectors_is_in_their_own_units():
    """A model that is N(0, I) in its units is N(mean, std^2) in the data's."""
    mean, std = np.asarray([5.0, -3.0]), np.asarray([2.0, 0.1])
    vectors, sde = Vectors(mean, std), PUBLISHED["vp"]
    data = mean + std * np.random.default_rng(0).standard_normal((8, 2))
    exact = -0.5 * (((data - mean) / std) ** 2).sum(1) - np.log(2 * np.pi * std.prod())
    values = data_log_likelihood(
        jax.random.key(0),
        sde,
        oracle.gaussian(jnp.zeros(2), jnp.eye(2)).score(sde),
        jnp.asarray(vectors.check(data)),
        vectors,
        divergence="exact",
    )
    # The solver's 1e-3 nats/dim by design.
    np.testing.assert_allclose(values.log_weight[:, 0], exact, atol=2e-3)
    np.testing.assert_array_equal(vectors.figure(values.log_weight), values.log_weight)


@pytest.mark.parametrize("method", ["uniform", "truncated_normal"])
def test_bins_of_vectors_have_the_probability_of_their_cells(method):
    """The mean of p(x) / q(x) over many draws is the probability of the cell, whose edges lie half
    a bin beside the value (times alpha, with the noise of t_min)."""
    vectors = Vectors((5.0, 0.0), (2.0, 4.0), (1.0, 2.0))
    alpha, sigma = (0.9, 0.2) if method == "truncated_normal" else (1.0, 0.0)
    std, draws = math.sqrt(alpha**2 + sigma**2), 20_000
    row = np.asarray([6.0, -4.0])
    data = jnp.broadcast_to(jnp.asarray(row, jnp.float32), (draws, 2))
    keys = jax.random.split(jax.random.key(0), draws)
    x, log_density = vectors.dequantized(keys, data, method, alpha * ONE, sigma * ONE)
    middle, half = alpha * (row - [5.0, 0.0]) / [2.0, 4.0], alpha * np.asarray([0.25, 0.25])
    assert (np.abs(np.asarray(x) - middle) <= half + 1e-6).all()  # float32's rounding

    def below(z):
        return np.asarray([0.5 * (1 + math.erf(each / std / math.sqrt(2))) for each in z])

    exact = (below(middle + half) - below(middle - half)).prod()
    log_p = -0.5 * jnp.sum(jnp.square(x), axis=1) / std**2 - math.log(2 * math.pi * std**2)
    ratio = np.exp(np.asarray(log_p - log_density, np.float64)) / exact
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(draws) + 1e-5
    bits = vectors.figure(jnp.log(jnp.asarray([exact])))
    np.testing.assert_allclose(bits, [-math.log2(exact) / 2], rtol=1e-6)
