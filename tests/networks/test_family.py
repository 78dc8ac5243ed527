"""Every option of the U-Net with every other: architectures drawn at random, and the published
ones."""

import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.networks import UNet, abstract, init
from tests.networks.test_unet import count, moved

NUM_DRAWN = 16  # counted and traced; a few more also run, which costs two compilations each
RUN = (3, 11, 15, 26, 31)  # which between them have every word of every option at work


def architecture(seed: int) -> dict:
    """The arguments of a small network, each drawn from all that it can be."""
    draw = random.Random(seed)
    levels = draw.choice([1, 2, 2, 3])
    conditional = draw.random() < 0.8
    return {
        "image_size": draw.choice([8, 12]),
        "channels": draw.choice([1, 3]),
        "width": draw.choice([8, 12]),
        "multipliers": tuple(draw.choice([1, 2, 3]) for _ in range(levels)),
        "num_blocks": draw.choice([1, 2]),
        "block": draw.choice(["biggan", "ddpm"]),
        "resample_with_conv": draw.random() < 0.5,
        "attention_resolutions": draw.choice([(), (8,), (4, 6), (12, 6, 3)]),
        "decoder_attention": draw.choice(["once", "every"]),
        "dropout": draw.choice([0.0, 0.2]),
        "activation": draw.choice(["swish", "elu", "relu", "lrelu"]),
        "init_scale": draw.choice([0.0, 1.0]),
        "norm_groups": draw.choice([0, 4]),
        "conditional": conditional,
        "embedding": draw.choice(["positional", "fourier"]),
        "fourier_scale": draw.choice([0.1, 16.0]),
        "skip_rescale": draw.random() < 0.5,
        "fir": draw.random() < 0.5,
        "progressive_input": draw.choice(["none", "input_skip", "residual"]),
        "combine": draw.choice(["sum", "cat"]),
        "progressive_output": draw.choice(["none", "output_skip", "residual"]),
        "num_classes": draw.choice([None, 3]) if conditional else None,
        "centered": draw.random() < 0.5,
        "input_frequencies": draw.choice([(), (3.0, 5.0)]) if conditional else (),
        "remat": draw.random() < 0.5,
        "dtype": draw.choice([jnp.float32, jnp.bfloat16]),
    }


def expected_count(a: dict) -> int:
    """The number of parameters, counted from conventions alone: width by width down and up."""

    def dense(n, m):
        return n * m + m

    def conv(n, m, size=3):
        return size * size * n * m + m

    wide = 4 * a["width"]

    def residual(n, m, resampled=False):
        total = 2 * n + conv(n, m) + 2 * m + conv(m, m)
        total += dense(wide, m) if a["conditional"] else 0
        if a["block"] == "biggan":
            return total + (conv(n, m, 1) if n != m or resampled else 0)
        return total + (dense(n, m) if n != m else 0)

    def attention(n):
        return 2 * n + 4 * dense(n, n)

    def resample(n):
        if a["block"] == "biggan":
            return residual(n, n, resampled=True)
        return conv(n, n) if a["resample_with_conv"] else 0

    total = 0
    extra = 2 * a["channels"] * len(a["input_frequencies"])
    if a["conditional"]:
        features = a["width"] * (2 if a["embedding"] == "fourier" else 1)
        total += a["width"] if a["embedding"] == "fourier" else 0
        total += dense(features, wide) + dense(wide, wide)
        total += a["num_classes"] * wide if a["num_classes"] else 0
        total += dense(wide, extra) if extra else 0
    total += conv(a["channels"] + extra, a["width"])

    widths = [a["width"] * m for m in a["multipliers"]]
    last = len(widths) - 1
    kept, n, image = [a["width"]], a["width"], a["channels"]
    for level, m in enumerate(widths):
        attends = a["image_size"] / 2**level in a["attention_resolutions"]
        for _ in range(a["num_blocks"]):
            total += residual(n, m) + (attention(m) if attends else 0)
            n = m
            kept.append(n)
        if level < last:
            total += resample(n)
            if a["progressive_input"] == "residual":
                total += conv(image, n)
                image = n
            elif a["progressive_input"] == "input_skip":
                total += conv(a["channels"], n, 1)
                n = 2 * n if a["combine"] == "cat" else n
            kept.append(n)
    total += 2 * residual(n, n) + attention(n)
    for level in range(last, -1, -1):
        m = widths[level]
        attends = a["image_size"] / 2**level in a["attention_resolutions"]
        for _ in range(a["num_blocks"] + 1):
            total += residual(n + kept.pop(), m)
            n = m
        if attends:
            blocks = a["num_blocks"] + 1 if a["decoder_attention"] == "every" else 1
            total += blocks * attention(m)
        if a["progressive_output"] == "output_skip":
            total += 2 * m + conv(m, a["channels"])
        elif a["progressive_output"] == "residual":
            total += 2 * m + conv(m, m) if level == last else conv(widths[level + 1], m)
        total += resample(m) if level else 0
    assert not kept
    return total + (
        2 * n + conv(n, a["channels"]) if a["progressive_output"] != "output_skip" else 0
    )


def inputs(a: dict) -> tuple:
    x = jax.random.normal(jax.random.key(1), (2, a["image_size"], a["image_size"], a["channels"]))
    labels = None if a["num_classes"] is None else jnp.asarray([0, 2])
    return x, jnp.asarray([0.3, -2.0]), labels


@pytest.mark.parametrize("seed", range(NUM_DRAWN))
def test_a_drawn_architecture_builds_and_has_the_parameters_it_should(seed):
    a = architecture(seed)
    apply, params = abstract(partial(UNet, **a))
    assert count(params) == expected_count(a)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x, condition, labels = inputs(a)
    for train in (False, True):
        out = jax.eval_shape(
            partial(apply, dropout_key=jax.random.key(0), train=train), params, x, condition, labels
        )
        assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@pytest.mark.parametrize("seed", RUN)
def test_a_drawn_architecture_runs_and_learns_by_the_right_gradient(seed):
    """In training the convolutions have a gradient of their own; without it, plain autodiff."""
    a = {**architecture(seed), "dropout": 0.0, "dtype": jnp.float32}
    apply, params = init(partial(UNet, **a), jax.random.key(0))
    params = moved(params)

    def loss(params, train):
        out = apply(params, *inputs(a), train=train)
        assert out.shape == inputs(a)[0].shape
        return jnp.mean(jnp.square(out))

    plain, own = (
        jax.jit(jax.value_and_grad(partial(loss, train=train)))(params) for train in (False, True)
    )
    np.testing.assert_allclose(plain[0], own[0], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(own[1]):
        expected = plain[1]
        for step in path:
            expected = expected[step.key]
        # The same sums in another order: some 100 roundings of 1e-7.
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-5 * largest)
    unused = sum(not np.any(leaf) for leaf in jax.tree.leaves(own[1]))
    frozen = a["conditional"] and a["embedding"] == "fourier"
    # As in the original, a residual output pyramid of one level is computed and not used.
    idle = a["progressive_output"] == "residual" and len(a["multipliers"]) == 1
    assert unused == (1 if frozen else 0) + (4 if idle else 0)


DDPM = {"block": "ddpm", "num_blocks": 2, "skip_rescale": False, "norm_groups": 32}
PYRAMIDS = {
    "embedding": "fourier",
    "fir": True,
    "progressive_input": "input_skip",
    "progressive_output": "output_skip",
}


# Counts of the original code (the last is diffusers' google/ddpm-cifar10-32).
@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (65_574_549, {**PYRAMIDS, "num_blocks": 2, "multipliers": (1, 1, 2, 2, 2, 2, 2)}),
        (
            105_785_896,
            {**PYRAMIDS, "num_blocks": 1, "width": 16, "multipliers": (1, 2, 4, 8, 16, 32, 32, 32)},
        ),
        (35_218_947, DDPM),
        (111_569_923, {**DDPM, "multipliers": (1, 1, 2, 2, 4, 4)}),
        (32_329_347, {**DDPM, "conditional": False}),
        (35_746_307, {**DDPM, "decoder_attention": "every"}),
    ],
)
def test_published_parameter_counts(expected, options):
    # The attended resolution must be reached: 16 pixels are at the fifth level of 256.
    size = {7: 256, 8: 1024, 6: 256}.get(len(options.get("multipliers", ())), 32)
    assert count(abstract(partial(UNet, image_size=size, channels=3, **options))[1]) == expected


def test_rematerialization_keeps_the_values_and_less_for_the_way_back():
    settings = {
        "image_size": 8,
        "channels": 1,
        "width": 8,
        "multipliers": (1, 1),
        "num_blocks": 1,
        "attention_resolutions": (8,),
        "dropout": 0.2,
    }
    x, condition, key = jnp.ones((4, 8, 8, 1)), jnp.arange(4.0), jax.random.key(0)
    results, kept = [], []
    for remat in (False, True):
        apply, params = init(partial(UNet, **settings, remat=remat), jax.random.key(0))

        def loss(params, apply=apply):
            out = apply(params, x, condition, dropout_key=key, train=True)
            return jnp.mean(jnp.square(out - x))

        results.append(jax.jit(jax.value_and_grad(loss))(moved(params)))
        way_back = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        kept.append(count(way_back))
    # The same operations, but fused in other ways: a rounding here and there.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), *results
    )
    # A block keeps its input; without, each of its some ten steps keeps its own.
    assert kept[1] < 0.4 * kept[0]
