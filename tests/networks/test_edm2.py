"""The magnitude-preserving network: the size of what each layer gives, weights without a size, its
start, classes, and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.networks import edm2
from score_sde.networks.edm2 import EDM2, EDM2Spec

SPEC = EDM2Spec(
    image_size=4,
    channels=1,
    width=16,
    multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(2,),
    head_width=8,
    dropout=0.5,
    fourier_scale=0.3,
    num_classes=3,
    augmentation=2,
    input_frequencies=(2.0,),
)
X = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
NOISE = jnp.asarray([-10.0, 0.5, 9.0])
LABELS = jnp.asarray([0, 2, -1], jnp.int32)  # the last one is none
MOVED = jnp.asarray([[0.5, 0.0], [0.0, -1.0], [0.0, 0.0]])


def made(spec=SPEC):
    return EDM2(spec, rngs=nnx.Rngs(jax.random.key(0)))


def with_gains(params, value=1.0):
    """Parameters whose gains are not those of the start, 0, but a value."""

    def gained(path, leaf):
        return jnp.full_like(leaf, value) if "gain" in path[-1].key else leaf

    return jax.tree_util.tree_map_with_path(gained, params)


@pytest.fixture(scope="module")
def network():
    """The network's graph, and its parameters with gains."""
    graph, params = nnx.split(made())
    return graph, with_gains(nnx.to_pure_dict(params))


def call(network, params=None, condition=None, **options):
    graph, own = network
    return nnx.merge(graph, own if params is None else params)(X, NOISE, condition, **options)


def mean_square(x):
    return float(np.mean(np.square(np.asarray(x, np.float64))))


def test_the_activation_keeps_the_size_of_normal_numbers():
    z, dz = np.linspace(-12.0, 12.0, 20001, retstep=True)
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    found = np.sum(np.square(np.asarray(edm2.mp_silu(jnp.asarray(z)), np.float64)) * density) * dz
    # The published constant has three digits: off by 0.0005 / 0.596 at most, twice that squared.
    assert found == pytest.approx(1.0, abs=2e-3)


def test_sums_and_concatenations_keep_the_size_of_uncorrelated_arrays():
    a, b = jnp.asarray([[1.0, -1.0]]), jnp.asarray([[1.0, 1.0]])  # mean squares 1, product 0
    for t in (0.0, 0.3, 0.5, 1.0):  # rounding of float32, as below
        assert mean_square(edm2.mp_sum(a, b, t)) == pytest.approx(1.0, abs=1e-6)
    a, b = jnp.ones((1, 6)), jnp.ones((1, 2))
    for t in (0.3, 0.5):
        out = np.asarray(edm2.mp_cat(a, b, t))
        assert mean_square(out) == pytest.approx(1.0, abs=1e-6)
        share = np.sum(out[:, 6:] ** 2) / np.sum(out**2)
        assert share == pytest.approx(t**2 / ((1 - t) ** 2 + t**2), abs=1e-6)


def test_pixels_have_unit_size_whatever_they_were():
    x = jnp.asarray([1e-2, 1.0, 1e3]).reshape(3, 1, 1, 1) * jax.random.normal(
        jax.random.key(0), (3, 2, 2, 8)
    )
    squares = np.mean(np.square(edm2.pixel_norm(x)), axis=-1)
    # 1e-8 is added to mean squares of 1e-4 times a chi square over its 8 degrees, 0.05 and more.
    np.testing.assert_allclose(squares, 1.0, atol=2e-3)
    zero = jnp.zeros((1, 1, 1, 4))
    gradient = jax.grad(lambda x: jnp.sum(edm2.pixel_norm(x)))(zero)
    assert np.isfinite(gradient).all()


def test_maps_give_unit_variance_for_white_noise():
    # The variance of an output is the sum of squares of its weights: those are the columns of
    # what the identity becomes, and what an image with one point becomes.
    options = {"dtype": SPEC.dtype, "rngs": nnx.Rngs(jax.random.key(0))}
    weights = edm2.MPDense(5, 7, **options)(jnp.eye(5))
    np.testing.assert_allclose(np.sum(np.square(weights), axis=0), 1.0, rtol=1e-6)
    points = jnp.zeros((3, 5, 5, 3)).at[:, 2, 2].set(jnp.eye(3))
    weights = edm2.MPConv(3, 4, **options)(points, False)
    np.testing.assert_allclose(np.sum(np.square(weights), axis=(0, 1, 2)), 1.0, rtol=1e-6)


def test_fourier_features_have_unit_size():
    features = edm2.MPFourier(20000, 0.1, rngs=nnx.Rngs(jax.random.key(0)))(NOISE)
    # The variance of 2 cos^2 of a uniform phase is 1/2; 5 standard errors.
    expected = pytest.approx(1.0, abs=5.0 * np.sqrt(0.5 / 20000))
    assert all(mean_square(row) == expected for row in features)


def test_attention_mixes_by_cosines():
    attention = edm2.CosineAttention(16, SPEC, rngs=nnx.Rngs(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(2), (2, 3, 2, 16))
    kernel = np.asarray(edm2.unit_kernel(attention.project.kernel[...]), np.float64)
    q, k, v = np.split((np.asarray(x, np.float64).reshape(2, 6, 16) @ kernel), 3, axis=-1)
    mixed = np.empty((2, 6, 16))
    for image in range(2):
        for head in (slice(0, 8), slice(8, 16)):
            a, b, c = (
                part[image, :, head] / np.linalg.norm(part[image, :, head], axis=1)[:, None]
                for part in (q, k, v)
            )
            weights = np.exp(np.sqrt(8.0) * a @ b.T)
            weights /= weights.sum(1, keepdims=True)
            mixed[image, :, head] = weights @ (np.sqrt(8.0) * c)
    mixed = mixed @ np.asarray(edm2.unit_kernel(attention.output.kernel[...]), np.float64)
    expected = (0.7 * np.asarray(x).reshape(2, 6, 16) + 0.3 * mixed) / np.sqrt(0.58)
    # Float32's rounding; 1e-8 beside the mean squares of 8 numbers.
    np.testing.assert_allclose(np.asarray(attention(x)).reshape(2, 6, 16), expected, atol=1e-5)


def test_the_output_is_zero_at_the_start_and_of_unit_size_with_gain_one():
    wide = replace(SPEC, width=64, image_size=8, attention_resolutions=(4,))
    graph, params = nnx.split(made(wide))
    x = jax.random.normal(jax.random.key(3), (8, 8, 8, 1))
    noise = jnp.linspace(-5.0, 5.0, 8)
    assert not nnx.merge(graph, params)(x, noise).any()
    params = nnx.to_pure_dict(params)
    params["output_gain"] = jnp.ones(())
    out = nnx.merge(graph, params)(x, noise)
    # Through 11 blocks. White noise keeps its size in each. Zeros beyond the border take up to
    # 7/16 of a sum of squares at a corner, and means over 2x2 pixels halve white noise's variance
    # before a normalization restores it; both make what follows smaller, not larger. Correlations
    # of paths, which sums do not know of, make it larger: twice at most where they are the same.
    assert 0.25 < mean_square(out) < 2.0


def test_the_size_of_a_weight_has_no_effect_and_its_gradient_is_orthogonal(network):
    condition = {"labels": LABELS, "augmentation": MOVED}
    params = network[1]

    def scaled(path, leaf):
        return 3.0 * leaf if path[-1].key == "kernel" else leaf

    threefold = jax.tree_util.tree_map_with_path(scaled, params)
    expected = call(network, condition=condition)
    # Rounding through 11 blocks.
    np.testing.assert_allclose(call(network, threefold, condition), expected, atol=1e-5)

    gradient = jax.grad(lambda p: jnp.sum(call(network, p, condition, reverse_only=True) ** 2))
    for (path, leaf), slope in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(gradient(params)),
        strict=True,
    ):
        assert np.isfinite(slope).all()
        if path[-1].key == "kernel":
            axes = tuple(range(leaf.ndim - 1))
            product = np.sum(np.asarray(slope * leaf, np.float64), axis=axes)
            # Of sums of up to 9 * 64 terms, each rounded to 6e-8 of the norms' product.
            sizes = np.linalg.norm(slope) * np.linalg.norm(leaf)
            assert np.abs(product).max() <= 1e-5 * sizes + 1e-9, path


def test_frequencies_and_phases_are_not_learned(network):
    gradient = jax.grad(lambda p: jnp.sum(call(network, p) ** 2))(network[1])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["fourier"]))
    assert np.any(gradient["encoder"]["level0_block0"]["gain"])


def test_classes_and_augmentation_are_conditions(network):
    plain = call(network)
    none = jnp.full(3, -1, jnp.int32)
    np.testing.assert_array_equal(call(network, condition={"labels": none}), plain)
    still = {"augmentation": jnp.zeros((3, 2))}
    np.testing.assert_array_equal(call(network, condition=still), plain)
    of_labels = np.asarray(call(network, condition={"labels": LABELS}) - plain)
    of_changes = np.asarray(call(network, condition={"augmentation": MOVED}) - plain)
    for difference in (of_labels, of_changes):
        moves = np.abs(difference).max(axis=(1, 2, 3))
        assert moves[:2].min() > 1e-3 and moves[2] == 0


def test_both_convolutions_and_dropout(network):
    plain = call(network)
    # The same sums in another order.
    np.testing.assert_allclose(call(network, reverse_only=True), plain, atol=1e-5)
    first, again, other = (
        call(network, dropout_key=jax.random.key(seed), reverse_only=True) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 6),
        ("multipliers", (1, 2, 2, 2)),
        ("attention_resolutions", (3,)),
        ("head_width", 12),
        ("num_heads", 3),
        ("dropout", 1.0),
        ("num_blocks", 0),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} = "):
        replace(SPEC, **{name: value})


def test_a_rectangle_and_half_precision():
    spec = replace(SPEC, image_size=(4, 8), dtype=jnp.bfloat16)
    network = made(spec)
    out = jax.eval_shape(lambda x: network(x, NOISE), jnp.zeros((3, 4, 8, 1)))
    assert (out.shape, out.dtype) == ((3, 4, 8, 1), jnp.float32)
