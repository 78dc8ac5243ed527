"""The network for vectors: its formula written a second time, its start, conditions and dropout."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.networks.mlp import MLP, MLPSpec

SPEC = MLPSpec(
    features=2,
    width=16,
    depth=2,
    dropout=0.5,
    embedding="fourier",
    fourier_scale=0.03,
    num_classes=3,
    condition_features=4,
)
X = jax.random.normal(jax.random.key(1), (3, 2))
NOISE = jnp.asarray([-10.0, 0.5, 9.0])
LABELS = jnp.asarray([0, 2, -1], jnp.int32)  # the last one is none
VECTOR = jax.random.normal(jax.random.key(2), (3, 4))
BOTH = {"labels": LABELS, "vector": VECTOR}


def moved(network):
    """The network moved off its start, where the last layers are almost 0."""
    generator = np.random.default_rng(0)
    graph, params = nnx.split(network)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda leaf: leaf + 0.1 * generator.standard_normal(leaf.shape, np.float32), params
        ),
    )


@pytest.fixture(scope="module")
def tiny():
    return moved(MLP(SPEC, rngs=nnx.Rngs(jax.random.key(0))))


def dense(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def swish(x):
    return x / (1.0 + np.exp(-x))


def test_the_network_is_its_formula(tiny):
    angles = 2 * math.pi * np.asarray(NOISE)[:, None] * np.asarray(tiny.noise.frequencies[...])
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    embedding = dense(tiny.noise.dense1, swish(dense(tiny.noise.dense0, features)))
    embedding = embedding + dense(tiny.vector, np.asarray(VECTOR))
    embedding[:2] += np.asarray(tiny.labels.table[...])[np.asarray(LABELS[:2])]
    h = dense(tiny.stem, np.asarray(X))
    for block in (tiny.blocks["block0"], tiny.blocks["block1"]):
        scale, shift = np.split(dense(block.modulation, swish(embedding)), 2, axis=1)
        y = swish((1.0 + scale) * norm(block.norm, h) + shift)
        h = h + dense(block.dense1, swish(dense(block.dense0, y)))
    expected = dense(tiny.head, swish(norm(tiny.head_norm, h)))
    # Float32's rounding through four layers.
    np.testing.assert_allclose(tiny(X, NOISE, BOTH), expected, rtol=1e-4, atol=1e-5)


def test_at_the_start_the_output_is_zero_and_has_a_gradient():
    network = MLP(SPEC, rngs=nnx.Rngs(jax.random.key(0)))
    graph, params = nnx.split(network)
    out, gradient = jax.value_and_grad(
        lambda p: jnp.sum((nnx.merge(graph, p)(X, NOISE, BOTH) - 1.0) ** 2)
    )(params)
    assert abs(float(out) - X.size) < 1e-2  # a variance of 1e-10 stands for 0
    assert float(jnp.abs(gradient["head"]["kernel"][...]).max()) > 1e-3


def test_missing_conditions_are_none_and_others_are_refused(tiny):
    without = tiny(X, NOISE)
    np.testing.assert_array_equal(tiny(X, NOISE, {}), without)
    none = tiny(X, NOISE, {"labels": jnp.full(3, -1, jnp.int32)})
    np.testing.assert_array_equal(none, without)
    each = [tiny(X, NOISE, {key: BOTH[key]}) for key in BOTH]
    assert all(np.abs(out - without).max() > 1e-3 for out in each)
    plain = MLP(replace(SPEC, num_classes=0), rngs=nnx.Rngs(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"labels.*vector"):
        plain(X, NOISE, BOTH)
    with pytest.raises(ValueError, match="tokens"):
        plain(X, NOISE, {"tokens": VECTOR})


def test_dropout_is_on_where_a_key_is_given(tiny):
    first, second = (tiny(X, NOISE, BOTH, dropout_key=jax.random.key(k)) for k in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    again = tiny(X, NOISE, BOTH, dropout_key=jax.random.key(0), reverse_only=True)
    np.testing.assert_array_equal(first, again)


def test_a_vector_does_not_depend_on_its_batch(tiny):
    def alone(i):
        rows = {key: array[i : i + 1] for key, array in BOTH.items()}
        return tiny(X[i : i + 1], NOISE[i : i + 1], rows)

    whole = tiny(X, NOISE, BOTH)
    # The products' sums are in another order in another batch.
    np.testing.assert_allclose(np.concatenate([alone(i) for i in range(3)]), whole, atol=1e-5)


def test_forward_and_reverse_derivatives_agree(tiny):
    """The likelihood takes a divergence by forward mode."""

    def of(x):
        return tiny(x, NOISE, BOTH).sum(axis=0)

    forward, reverse = jax.jacfwd(of)(X), jax.jacrev(of)(X)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("embedding", ["fourier", "positional"])
def test_output_and_parameters_are_float32(dtype, embedding):
    spec = replace(SPEC, dtype=np.dtype(dtype), embedding=embedding)
    network = nnx.eval_shape(lambda: MLP(spec, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(network)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    key = jax.eval_shape(lambda: jax.random.key(0))
    out = jax.eval_shape(
        lambda p, k: nnx.merge(graph, p)(X, NOISE, BOTH, dropout_key=k), params, key
    )
    assert (out.shape, out.dtype) == (X.shape, jnp.float32)


def test_equal_specifications_make_equal_functions():
    graphs = [nnx.split(nnx.eval_shape(lambda: MLP(SPEC, rngs=nnx.Rngs(0))))[0] for _ in range(2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": 0}, ("features", "positive")),
        ({"depth": 0}, ("depth", "positive")),
        ({"width": 18}, ("18", "multiples of 4")),
        ({"width": 12}, ("12", "at least 16")),
        ({"dropout": 1.0}, ("dropout", "below 1")),
        ({"activation": "tanh"}, ("tanh", "swish")),
        ({"condition_features": -1}, ("condition_features", "-1")),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError) as caught:
        replace(SPEC, **settings)
    assert all(word in str(caught.value) for word in words)
