"""Every option of the U-Net with every other: architectures drawn at random."""

import random
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.networks import UNet, UNetSpec, abstract, init
from score_sde.networks.plan import plan
from score_sde.networks.spec import CHOICES
from tests.cases import only, thorough
from tests.networks.test_unet import count, filled

NUM_DRAWN = 12  # counted and traced; a few more also run, which costs two compilations each
RUN = (487, 497, 1472, 112)  # which between them have every word of every option at work


def architecture(seed: int) -> UNetSpec:
    """A small network whose settings are drawn from all that they can be."""
    draw = random.Random(seed)
    levels = draw.choice([1, 2, 2, 3])
    conditional = draw.random() < 0.8
    settings = {
        "image_size": draw.choice([8, 12]),
        "channels": draw.choice([1, 3]),
        "width": draw.choice([8, 12]),
        "multipliers": tuple(draw.choice([1, 2, 3]) for _ in range(levels)),
        "num_blocks": draw.choice([1, 2]),
        "block": draw.choice(["biggan", "ddpm"]),
        "resample_with_conv": draw.random() < 0.5,
        "attention_resolutions": draw.choice([(), (8,), (4, 6), (12, 6, 3)]),
        "decoder_attention": draw.choice(CHOICES["decoder_attention"]),
        "dropout": draw.choice([0.0, 0.2]),
        "activation": draw.choice(CHOICES["activation"]),
        "init_scale": draw.choice([0.0, 1.0]),
        "norm_groups": draw.choice([0, 4]),
        "conditional": conditional,
        "embedding": draw.choice(["positional", "fourier"]),
        "fourier_scale": draw.choice([0.1, 16.0]),
        "skip_rescale": draw.random() < 0.5,
        "fir": draw.random() < 0.5,
        "progressive_input": draw.choice(CHOICES["progressive_input"]),
        "combine": draw.choice(CHOICES["combine"]),
        "progressive_output": draw.choice(CHOICES["progressive_output"]),
        "num_classes": draw.choice([0, 3]) if conditional else 0,
        "centered": draw.random() < 0.5,
        "input_frequencies": draw.choice([(), (3.0, 5.0)]) if conditional else (),
        "remat": draw.random() < 0.5,
        "dtype": draw.choice([jnp.float32, jnp.bfloat16]),
    }
    if settings["embedding"] == "positional" and draw.random() < 0.5:
        settings["embedding"] = "vaswani"
    settings["head_width"] = draw.choice([0, 4])
    settings["norm_eps"] = draw.choice([1e-6, 1e-5])
    settings["symmetric_padding"] = draw.random() < 0.5
    if settings["block"] == "biggan" and draw.random() < 0.5:
        settings["block"] = "adm"
    settings["scale_shift"] = draw.random() < 0.5
    settings["num_heads"] = draw.choice([1, 2])
    settings["embedding_features"] = draw.choice([0, 16])
    settings["level_scale"] = draw.choice([1.0, 0.25])
    sizes = {settings["image_size"] // 2**level for level in range(levels)}
    attended = tuple(size for size in settings["attention_resolutions"] if size in sizes)
    return UNetSpec(**settings | {"attention_resolutions": attended})


def expected_count(spec: UNetSpec) -> int:
    """The number of parameters: the layers of each block of the plan, from conventions alone."""

    def dense(n, m):
        return n * m + m

    def conv(n, m, size=3):
        return size * size * n * m + m

    def residual(block):
        n, m = block.in_channels, block.out_channels
        total = 2 * n + conv(n, m) + 2 * m + conv(m, m)
        total += dense(wide, 2 * m if spec.scale_shift else m) if spec.conditional else 0
        resized = block.resample != "none" and spec.block == "biggan"
        return total + (dense(n, m) if n != m or resized else 0)

    features = spec.embedding_features or spec.width
    wide = 4 * features
    sines = 2 * features if spec.embedding == "fourier" else features
    frequencies = features if spec.embedding == "fourier" else 0
    count_of = {
        "embedding": lambda n, m: frequencies + dense(sines, wide) + dense(wide, wide),
        "labels": lambda n, m: n * wide,
        "gate": lambda n, m: dense(wide, m),
        "logits": dense,
        "attention": lambda n, m: 2 * n + 4 * dense(n, n),
        "down": lambda n, m: conv(n, n) if spec.resample_with_conv else 0,
        "up": lambda n, m: conv(n, n) if spec.resample_with_conv else 0,
        "combine": lambda n, m: conv(n, m, 1),
        "norm": lambda n, m: 2 * n,
        **dict.fromkeys(("stem", "input", "output_start", "output", "image", "add_image"), conv),
    }
    return sum(
        residual(block)
        if block.kind == "residual"
        else count_of[block.kind](block.in_channels, block.out_channels)
        for block in plan(spec)
    )


def inputs(spec: UNetSpec) -> tuple:
    shape = (2, spec.image_size, spec.image_size, spec.channels)
    condition = {"labels": jnp.asarray([0, 2])} if spec.num_classes else {}
    return jax.random.normal(jax.random.key(1), shape), jnp.asarray([0.3, -2.0]), condition


def test_the_plan_reads_every_skip_that_it_keeps():
    """The last that is left, so that the sizes meet; and no path stands twice."""
    for seed in range(100):
        blocks, kept = plan(architecture(seed)), []
        for block in blocks:
            if block.reads:
                level, n = kept.pop()
                assert level == block.level and n < block.in_channels
            if block.keeps:
                into = block.resample == "down" or block.kind in ("down", "input", "combine")
                kept.append((block.level + into, block.out_channels))
        assert not kept
        assert len({block.path for block in blocks}) == len(blocks)


@pytest.mark.parametrize("seed", only((0, 1, 2, 7), range(NUM_DRAWN)))
def test_a_drawn_architecture_builds_and_has_the_parameters_it_should(seed):
    spec = architecture(seed)
    apply, params = abstract(partial(UNet, spec))
    assert count(params) == expected_count(spec)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x, noise, condition = inputs(spec)
    # Without dropout it runs in test_unet.py, and below where the suite is thorough.
    call = partial(apply, dropout_key=jax.random.key(0), reverse_only=True)
    out = jax.eval_shape(call, params, x, noise, condition)
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@pytest.mark.parametrize("seed", range(3))
def test_a_classifier_is_the_encoder_and_the_middle(seed):
    whole = replace(architecture(seed), num_classes=0)
    spec = replace(whole, logits=5)
    assert plan(spec)[:-2] == plan(whole)[: len(plan(spec)) - 2]
    apply, params = abstract(partial(UNet, spec))
    assert count(params) == expected_count(spec) < count(abstract(partial(UNet, whole))[1])
    out = jax.eval_shape(apply, params, *inputs(spec))
    assert (out.shape, out.dtype) == ((2, 5), jnp.float32)


@pytest.mark.parametrize("seed", thorough(*RUN))
def test_a_drawn_architecture_runs_and_learns_by_the_right_gradient(seed):
    """`reverse_only` convolutions have a gradient of their own; the others plain autodiff."""
    spec = replace(architecture(seed), dropout=0.0, dtype=jnp.float32)
    apply, params = filled(partial(UNet, spec))
    x, noise, condition = inputs(spec)

    def loss(params, x, reverse_only):
        out = apply(params, x, noise, condition, reverse_only=reverse_only)
        assert out.shape == x.shape
        return jnp.mean(jnp.square(out))

    (plain, plain_gradients), (own, own_gradients) = (
        jax.jit(jax.value_and_grad(partial(loss, reverse_only=reverse_only), (0, 1)))(params, x)
        for reverse_only in (False, True)
    )
    np.testing.assert_allclose(plain, own, rtol=1e-5)
    for ours, expected in zip(own_gradients, plain_gradients, strict=True):
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        jax.tree.map(
            # The same sums in another order: some 100 roundings of 1e-7.
            partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * largest),
            ours,
            expected,
        )
    unused = sum(not np.any(leaf) for leaf in jax.tree.leaves(own_gradients[0]))
    frozen = spec.conditional and spec.embedding == "fourier"
    # As in the original, a residual output pyramid of one level is computed and not used.
    idle = spec.progressive_output == "residual" and len(spec.multipliers) == 1
    assert unused == (1 if frozen else 0) + (4 if idle else 0)


def losses_with_and_without_rematerialization():
    """Of a tiny network with dropout: (loss of the parameters, parameters), without it first."""
    tiny = UNetSpec(8, 1, width=8, multipliers=(1, 1), num_blocks=1, attention_resolutions=(8,))
    x, noise, key = jnp.ones((4, 8, 8, 1)), jnp.arange(4.0), jax.random.key(0)
    for remat in (False, True):
        apply, params = filled(partial(UNet, replace(tiny, remat=remat, dropout=0.2)))

        def loss(params, apply=apply):
            out = apply(params, x, noise, dropout_key=key, reverse_only=True)
            return jnp.mean(jnp.square(out - x))

        yield loss, params


def test_rematerialization_keeps_less_for_the_way_back():
    without, kept = (
        count(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params))
        for loss, params in losses_with_and_without_rematerialization()
    )
    # A block keeps its input; without, each of its some ten steps keeps its own.
    assert kept < 0.4 * without


@pytest.mark.thorough
def test_rematerialization_keeps_the_values():
    results = [
        jax.jit(jax.value_and_grad(loss))(params)
        for loss, params in losses_with_and_without_rematerialization()
    ]
    # The same operations, but fused in other ways: a rounding here and there.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), *results
    )


OTHERS = {
    **{"fourier_scale": 2.0, "combine": "cat", "num_heads": 2, "decoder_attention": "every"},
    **{"embedding": "vaswani", "embedding_features": 16, "level_scale": 2.5},
    "progressive_input": "residual",
}
SWITCHES = ("resample_with_conv", "symmetric_padding", "fir", "scale_shift")


def program(spec: UNetSpec) -> list[object]:
    """What evaluates the network, its constants, and its initial parameters."""
    apply, params = init(partial(UNet, spec), jax.random.key(0))
    x = jnp.zeros((1, *spec.sides, spec.channels))
    found = jax.make_jaxpr(apply)(params, x, jnp.ones(1), {})
    numbers = (*found.consts, *jax.tree.leaves(params))
    return [f"{found}", *(np.asarray(each).tobytes() for each in numbers)]


@pytest.mark.parametrize("seed", [0, 1, *thorough(*range(2, 12))])
def test_settings_without_effect_have_none(seed):
    """And all others have one: the program is another."""
    spec = replace(architecture(seed), num_heads=1, num_classes=0, augmentation=0)
    usual, without = program(spec), spec.without_effect
    changes = {name: value for name, value in OTHERS.items() if getattr(spec, name) != value}
    changes |= {name: not getattr(spec, name) for name in SWITCHES}
    for name, value in changes.items():
        same = program(replace(spec, **{name: value})) == usual
        assert same == (name in without), name
