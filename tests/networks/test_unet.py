import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.networks import UNet, UNetSpec, abstract, init
from score_sde.networks.spec import CHOICES
from tests.cases import thorough

TINY = UNetSpec(
    image_size=4,
    channels=2,
    width=8,
    multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(2,),
)


def network(spec=TINY, **changes):
    """The constructor of a network."""
    return partial(UNet, replace(spec, **changes))


def count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def filled(make):
    """(apply, params): normal parameters, as far from 0 as those of a trained network. Nothing is
    compiled for them; to initialize a network takes a program for each shape."""
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        inputs = math.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        draws = generator.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(inputs))
        return jnp.asarray(draws + np.float32(path[-1].key == "scale"))

    apply, shapes = abstract(make)
    return apply, jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def tiny():
    """(apply, params) of a network with all that training can switch: dropout and labels."""
    apply, params = filled(network(dropout=0.5, num_classes=3))
    return jax.jit(apply, static_argnames="reverse_only"), params


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    return x, jnp.asarray([1.0, 20.0, 999.0])


@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        ((12, 8), {"fir": True, "progressive_input": "input_skip", "block": "ddpm"}),
        (8, {"multipliers": (1,), "attention_resolutions": ()}),
        (8, {"dtype": jnp.bfloat16, "scale_shift": True}),
        *thorough(
            (28, {"multipliers": (1, 2, 2), "attention_resolutions": (14,)}),
            ((8, 12), {"multipliers": (1, 2, 1), "attention_resolutions": (4,)}),
            (8, {"fir": True, "progressive_input": "residual", "embedding": "fourier"}),
            (8, {"progressive_input": "residual", "skip_rescale": False, "centered": False}),
            (8, {"input_frequencies": (128.0, 256.0), "num_classes": 10, "width": 12}),
            (8, {"block": "adm", "scale_shift": True, "num_heads": 2, "embedding_features": 16}),
            (8, {"dtype": jnp.bfloat16, "fir": True, "embedding": "fourier", "fourier_scale": 1.0}),
        ),
    ],
)
def test_output_has_the_shape_of_the_input(image_size, options):
    settings = {"width": 8, "multipliers": (1, 2), "attention_resolutions": (4,), **options}
    spec = UNetSpec(image_size=image_size, channels=3, num_blocks=1, dropout=0.1, **settings)
    apply, params = abstract(partial(UNet, spec))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x = jax.ShapeDtypeStruct((2, *spec.sides, 3), jnp.float32)
    noise = jax.ShapeDtypeStruct((2,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    for reverse_only in (False, True):
        function = partial(apply, reverse_only=reverse_only)
        out = jax.eval_shape(
            lambda p, x, c, k, f=function: f(p, x, c, dropout_key=k), params, x, noise, key
        )
        assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@pytest.mark.parametrize("progressive_output", CHOICES["progressive_output"])
def test_learned_variances_double_the_channels_of_the_output(progressive_output):
    options = {"progressive_output": progressive_output, "num_blocks": 1, "learned_variance": True}
    spec = UNetSpec(8, 3, width=8, multipliers=(1, 2), attention_resolutions=(), **options)
    apply, params = abstract(partial(UNet, spec))
    x, noise = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 8, 3), (2,)))
    assert jax.eval_shape(apply, params, x, noise).shape == (2, 8, 8, 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 28, "multipliers": (1, 2, 2, 2)}, ("multipliers", "28", "1 to 3")),
        ({"image_size": (8, 12), "multipliers": (1,) * 4}, ("multipliers", "(8, 12)", "1 to 3")),
        ({"image_size": (8, 0)}, ("image_size = (8, 0)", "positive integers, (height, width)")),
        ({"image_size": (8, 8, 8)}, ("image_size", "positive integers, (height, width)")),
        (
            {"image_size": (12, 8), "attention_resolutions": (12,)},
            ("attention_resolutions = (12,)", "8, 4"),
        ),
        ({"multipliers": ()}, ("multipliers", "1 to 4")),
        ({"multipliers": (1, 0)}, ("multipliers = (1, 0)", "positive integers")),
        ({"num_blocks": 0}, ("num_blocks = 0", "positive")),
        ({"width": 6}, ("width = 6", "multiples of 4")),
        # What would fill the memory, or take a day to compile.
        ({"width": 2**26}, ("width = 67108864", "up to 16384")),
        ({"multipliers": (1, 2**20)}, ("multipliers", "up to 16384 channels")),
        ({"multipliers": (1,) * 10**5}, ("multipliers", "1 to 4")),
        ({"num_blocks": 201}, ("num_blocks = 201", "up to 400 blocks on all levels")),
        ({"head_width": 7}, ("head_width = 7", "divisors of the widths 256 with attention")),
        ({"num_heads": 3}, ("num_heads = 3", "divisors of the widths 256 with attention")),
        ({"embedding_features": 6}, ("embedding_features = 6", "0, multiples of 4")),
        ({"level_scale": 0.0}, ("level_scale = 0.0", "positive numbers")),
        ({"norm_eps": 0.0}, ("norm_eps = 0.0", "positive")),
        ({"dropout": 1.0}, ("dropout = 1.0", "below 1")),
        ({"attention_resolutions": (16,)}, ("attention_resolutions = (16,)", "8, 4")),
        ({"embedding": "learned"}, ("embedding = 'learned'", "positional, vaswani, fourier")),
        ({"progressive_input": "cat"}, ("progressive_input", "cat", "input_skip, residual")),
        ({"norm_groups": 7}, ("norm_groups = 7", "divisors of width = 128")),
        ({"conditional": False, "num_classes": 3}, ("num_classes = 3", "conditional")),
        ({"conditional": False, "input_frequencies": (8,)}, ("input_frequencies", "conditional")),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(options, words):
    allowed = {"image_size": 8, "multipliers": (1, 2), "attention_resolutions": ()}
    with pytest.raises(ValueError) as error:
        UNetSpec(channels=1, **{**allowed, **options})
    assert all(word in str(error.value) for word in words)


def test_a_spec_is_hashable_however_it_is_written():
    spec = UNetSpec(8, 1, multipliers=[1, 2], attention_resolutions=[8], dtype="bfloat16")
    same = UNetSpec(8, 1, multipliers=(1, 2), attention_resolutions=(8,), dtype=jnp.bfloat16)
    assert spec == same and hash(spec) == hash(same) and hash(replace(spec, width=8))
    assert UNetSpec((16, 16), 1) == UNetSpec(16, 1) != UNetSpec((16, 32), 1)


def test_the_scale_of_the_levels_is_a_factor_of_the_noise_level():
    """A power of 2, so that nothing is rounded. The features need not be as many as channels."""
    settings = {"embedding_features": 12}
    found = [
        UNet(replace(TINY, level_scale=scale, **settings), rngs=nnx.Rngs(0))._embedding(noise, {})
        for scale, noise in ((1.0, jnp.asarray([1.0, 250.0])), (0.25, jnp.asarray([4.0, 1000.0])))
    ]
    assert found[0].shape == (2, 48)
    np.testing.assert_array_equal(*found)


def test_images_that_are_not_square_are_mirrored_along_either_side():
    """With kernels that are symmetric along both sides a mirrored image gives the mirrored output,
    at height and width that differ: exact but for rounding, as sums run in another order."""
    spec = replace(TINY, image_size=(4, 6))
    apply, params = filled(partial(UNet, spec))
    _, of_square = abstract(network())
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, of_square)

    def symmetric(leaf):
        if leaf.ndim != 4:
            return leaf
        leaf = np.asarray(leaf) + np.asarray(leaf)[::-1]
        return leaf + leaf[:, ::-1]

    params = jax.tree.map(symmetric, params)
    x = jax.random.normal(jax.random.key(1), (1, 4, 6, 2))
    batch = jnp.concatenate([x, x[:, ::-1], x[:, :, ::-1]])
    plain, upside_down, mirrored = jax.jit(apply)(params, batch, jnp.full(3, 20.0))
    assert plain.shape == (4, 6, 2) and np.abs(plain - mirrored).max() > 0.1
    for found in (upside_down[::-1], mirrored[:, ::-1]):
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-4)


def test_initial_values_follow_the_key_and_their_scale():
    make = network(embedding="fourier")
    apply, params = init(make, jax.random.key(0))
    again, same = init(make, jax.random.key(0))
    assert apply == again and hash(apply) == hash(again) and apply == abstract(make)[0]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, same)))
    other = init(make, jax.random.key(1))[1]
    assert not np.array_equal(params["stem"]["kernel"], other["stem"]["kernel"])

    # Uniform within +-sqrt(3 s / mean fan), mean fan = 9 (2 + 8) / 2 at the stem; of its 144
    # numbers the largest lies above 0.9 of the bound but for a chance of 0.9^144 = 3e-7.
    bound = math.sqrt(3 / 45)
    assert 0.9 * bound < np.abs(params["stem"]["kernel"]).max() <= bound
    bound = math.sqrt(3e-10 / 45)
    assert 0.9 * bound < np.abs(params["head"]["kernel"]).max() <= bound
    bound = math.sqrt(3 * 0.1 / 16)
    assert 0.9 * bound < np.abs(params["middle"]["attention"]["query"]["kernel"]).max() <= bound
    assert not np.any(params["stem"]["bias"]) and np.all(params["head_norm"]["scale"] == 1)
    # The standard deviation of 8 normal numbers: 16 within a factor 3, as good as always.
    assert 16 / 3 < np.std(params["condition"]["frequencies"]) < 48


def test_dropout_acts_by_its_key_alone(tiny, batch):
    """Where a key is given, whatever the form of the gradient, whose values are the same."""
    apply, params = tiny
    plain = apply(params, *batch)
    one = apply(params, *batch, dropout_key=jax.random.key(1))
    again = apply(params, *batch, dropout_key=jax.random.key(1))
    two = apply(params, *batch, dropout_key=jax.random.key(2))
    assert np.array_equal(one, again)
    scale = np.abs(plain).max()
    assert np.abs(one - two).max() > 1e-2 * scale
    assert np.abs(one - plain).max() > 1e-2 * scale
    same = apply(params, *batch, dropout_key=jax.random.key(1), reverse_only=True)
    # The same operations, fused in other ways.
    np.testing.assert_allclose(same, one, rtol=0, atol=1e-6 * scale)


def test_labels_add_to_the_embedding(tiny, batch):
    apply, params = tiny
    none = apply(params, *batch)
    labels = {"labels": jnp.asarray([0, 2, -1], jnp.int32)}
    programs = [str(jax.make_jaxpr(apply)(params, *batch, condition)) for condition in (None, {})]
    assert programs[0] == programs[1]
    some = apply(params, *batch, labels)
    difference = np.abs(some - none).max(axis=(1, 2, 3)) / np.abs(none).max()
    # Same numbers up to the order of float32 sums for the label -1; others change visibly.
    assert difference[2] < 1e-6 and difference[:2].min() > 1e-3
    with pytest.raises(ValueError, match="condition 'label': allowed are labels"):
        apply(params, *batch, {"label": labels["labels"]})
    unlabelled, its_params = abstract(network(dropout=0.0))
    with pytest.raises(ValueError, match="condition 'labels': allowed are none"):
        jax.eval_shape(unlabelled, its_params, *batch, labels)


def test_jvp_agrees_with_differences(batch):
    """With every kind of convolution."""
    options = {"fir": True, "progressive_input": "residual", "embedding": "fourier"}
    apply, params = filled(network(dropout=0.0, **options))
    x, noise = batch[0], jnp.log(batch[1])
    direction, step = jax.random.normal(jax.random.key(6), x.shape), 1e-2

    @jax.jit
    def value_and_tangent(x):
        return jax.jvp(lambda x: apply(params, x, noise), (x,), (direction,))

    tangent = value_and_tangent(x)[1]
    ends = [value_and_tangent(x + sign * step * direction)[0] for sign in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    # Error of the central difference: step^2 f''' / 6, 2e-5 times a third derivative of some tens;
    # float32 rounding adds 1e-7 / step.
    np.testing.assert_allclose(tangent, numeric, rtol=0, atol=1e-2 * np.abs(numeric).max())


def test_bfloat16_is_close_to_float32(tiny, batch):
    params = tiny[1]
    low, _ = abstract(network(dropout=0.5, num_classes=3, dtype=jnp.bfloat16))
    out = jax.jit(low)(params, *batch)
    expected = tiny[0](params, *batch)
    assert out.dtype == jnp.float32
    # 2^-9 per rounding, over some 30 layers in a row.
    assert np.abs(out - expected).max() < 0.05 * np.abs(expected).max()


def test_uncentered_input_is_mapped_to_minus_one_to_one(tiny, batch):
    apply, params = tiny
    uncentered, _ = abstract(network(dropout=0.5, num_classes=3, centered=False))
    x, noise = batch
    # x / 2 + 1/2 rounds at 2^-24, so the mapped input is x within 2^-23.
    np.testing.assert_allclose(
        jax.jit(uncentered)(params, 0.5 * x + 0.5, noise),
        apply(params, x, noise),
        atol=1e-4,
    )
