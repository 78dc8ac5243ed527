"""The parts of the networks, each against its formula written a second time in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.networks import UNetSpec
from score_sde.networks.blocks import AttentionBlock, Resample, ResidualBlock
from score_sde.networks.convolution import convolve, convolve_reverse_only
from score_sde.networks.embeddings import input_features, positional_features
from score_sde.networks.layers import Dense, GroupNorm, dense_together, dropout, dropout_states
from score_sde.networks.resampling import fir_down, fir_filter, fir_up, mean_down, nearest_up

KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def numpy_filter(x, kernel, before, after):
    """Correlation of each channel with `kernel` after padding."""
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    height, width = (n - len(kernel) + 1 for n in x.shape[1:3])
    return sum(
        kernel[i, j] * x[:, i : i + height, j : j + width]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )


def numpy_convolve(x, kernel, before, after):
    """Correlation (as convolutions of networks are) with a kernel (k, k, in, out) after padding."""
    kernel = np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    height, width = (n - len(kernel) + 1 for n in x.shape[1:3])
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)


def test_resampling_follows_its_definition(image):
    wide = image.astype(np.float64)
    zeros = np.zeros((2, 12, 12, 3))
    zeros[:, ::2, ::2] = wide
    expected = {
        fir_down: numpy_filter(wide, KERNEL, 1, 1)[:, ::2, ::2],
        fir_filter: numpy_filter(wide, KERNEL, 2, 2),
        fir_up: 4 * numpy_filter(zeros, KERNEL, 2, 1),
        nearest_up: wide.repeat(2, axis=1).repeat(2, axis=2),
        mean_down: sum(wide[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4,
    }
    for function, values in expected.items():
        # Sums of 16 float32 products of size 1 with weights that add up to 1.
        np.testing.assert_allclose(function(jnp.asarray(image)), values, rtol=0, atol=1e-6)


def test_resampling_with_a_convolution_follows_its_definition(image):
    """Down: filter, then every second value; up: zeros between the pixels, convolved to the full
    2 H + 1, then filtered (conventions of the original). Without FIR: stride 2 and (0, 1) zeros,
    or (1, 1); nearest neighbours, then 3x3."""
    x, wide = jnp.asarray(image), image.astype(np.float64)
    between = np.zeros((2, 11, 11, 3))
    between[:, ::2, ::2] = wide
    for reverse_only in (False, True):
        for fir, both in ((False, False), (False, True), (True, False)):
            spec = UNetSpec(32, 3, fir=fir, symmetric_padding=both)
            down = Resample(3, 4, spec, up=False, conv=True, rngs=nnx.Rngs(0))
            up = Resample(3, 4, spec, up=True, conv=True, rngs=nnx.Rngs(1))
            for layer in (down, up):
                layer.conv.bias[...] = jnp.arange(4.0)
            if fir:
                filtered = numpy_filter(wide, KERNEL, 2, 2)
                less = numpy_convolve(filtered, down.conv.kernel[...], 0, 0)[:, ::2, ::2]
                more = 4 * numpy_filter(
                    numpy_convolve(between, up.conv.kernel[...], 2, 2), KERNEL, 1, 1
                )
            else:
                less = numpy_convolve(wide, down.conv.kernel[...], int(both), 1)[:, ::2, ::2]
                nearest = wide.repeat(2, axis=1).repeat(2, axis=2)
                more = numpy_convolve(nearest, up.conv.kernel[...], 1, 1)
            # Sums of 27 products of size 1, and of 16 of these with weights that add up to 4.
            np.testing.assert_allclose(
                down(x, reverse_only), less + np.arange(4), rtol=0, atol=1e-5
            )
            np.testing.assert_allclose(up(x, reverse_only), more + np.arange(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (36, 9), (144, 24), (160, 32)])
def test_group_norm(mean, channels, groups):
    norm = GroupNorm(channels, dtype=np.dtype("float32"))
    assert norm.groups == groups
    rng = np.random.default_rng(0)
    scale, bias = rng.standard_normal((2, channels)).astype(np.float32)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    x = (mean + rng.standard_normal((2, 4, 4, channels))).astype(np.float32)

    grouped = x.astype(np.float64).reshape(2, 16, groups, channels // groups)
    grouped = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    grouped /= np.sqrt(np.square(grouped).mean(axis=(1, 3), keepdims=True) + 1e-6)
    expected = grouped.reshape(x.shape) * scale + bias
    # The mean is rounded at 6e-8 of itself, some roundings deep; E[x^2] - E[x]^2 would be off by
    # 0.06 to 1 at a mean of 1000.
    tolerance = 1e-5 if mean == 0 else 5e-4
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=0, atol=tolerance)


def test_group_norm_keeps_its_statistics_in_float32():
    norm = GroupNorm(8, dtype=np.dtype(jnp.bfloat16))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 32, 8)), jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    # Sums over 4096 elements in bfloat16 would be off by tens of percent; only the output is
    # rounded, at 2^-9, which averages out.
    assert abs(float(jnp.square(y.astype(jnp.float32)).mean()) - 1) < 2e-3


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, (1, 1)), (1, 1, (0, 0)), (3, 2, (0, 1)), (3, 2, (0, 0)), (3, 2, (1, 1))],
)
@pytest.mark.parametrize("length", [6, 7])
def test_own_gradient_of_the_convolution(size, stride, padding, length):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, length, length, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 4))

    def gradients(function):
        y, pull = jax.vjp(lambda x, k: function(x, k, stride, padding), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    plain = jax.jit(lambda: gradients(convolve))()
    own = jax.jit(lambda: gradients(convolve_reverse_only))()
    for a, b in zip(plain, own, strict=True):
        # Sums of at most 2 * 7 * 7 products of size 1 in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_dropout_rate_and_independence():
    x = jnp.ones((2**18, 4))
    one, two = (np.asarray(dropout(s, x, 0.3)) for s in dropout_states(jax.random.key(0), 0.3, 2))
    # Of 2^20 elements the share dropped has standard deviation sqrt(0.21) / 2^10 = 4.5e-4, and
    # the share of those kept in two masks, or beside each other, sqrt(0.25) / 2^10 = 4.9e-4 (7e-4
    # for neighbours, of which there are half as many).
    assert abs((one == 0).mean() - 0.3) < 5 * 4.5e-4
    np.testing.assert_allclose(one[one != 0], 1 / 0.7, rtol=1e-6)
    kept = one != 0
    assert abs((kept & (two != 0)).mean() - 0.49) < 5 * 4.9e-4
    assert abs((kept[:, ::2] & kept[:, 1::2]).mean() - 0.49) < 5 * 7e-4


@pytest.mark.parametrize(("head_width", "num_heads"), [(0, 1), (4, 1), (0, 4)])
def test_attention_follows_its_formula(head_width, num_heads):
    """Each head by itself; its channels are neighbours."""
    spec = UNetSpec(4, 3, width=8, multipliers=(1,), attention_resolutions=(), num_blocks=1)
    spec = replace(spec, head_width=head_width, num_heads=num_heads)
    spec, each = replace(spec, skip_rescale=False, norm_eps=0.1), head_width or 8 // num_heads
    block = AttentionBlock(8, spec, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 8)).astype(np.float32)
    for index, part in enumerate((block.query, block.key, block.value, block.output)):
        draw = np.random.default_rng(index + 1)
        part.kernel[...] = jnp.asarray(draw.standard_normal((8, 8)), jnp.float32)

    wide = x.astype(np.float64).reshape(6, 8)
    groups = wide.reshape(6, 2, 4)  # min(8 // 4, 32) of them
    centered = groups - groups.mean(axis=(0, 2), keepdims=True)
    h = centered / np.sqrt(np.square(centered).mean(axis=(0, 2), keepdims=True) + 0.1)
    q, k, v = (
        h.reshape(6, 8) @ np.asarray(part.kernel[...], np.float64)
        for part in (block.query, block.key, block.value)
    )
    heads = []
    for begin in range(0, 8, each):
        part = slice(begin, begin + each)
        logits = q[:, part] @ k[:, part].T / np.sqrt(each)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, part])
    expected = wide + np.concatenate(heads, axis=1) @ np.asarray(block.output.kernel[...])
    # Logits of some 30 in float32: their exponentials are off by 30 roundings.
    np.testing.assert_allclose(block(jnp.asarray(x)).reshape(6, 8), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resample", ["none", "down"])
def test_a_block_with_scale_and_shift_follows_its_formula(resample):
    """ADM's: the shortcut has no convolution where the size alone changes."""
    spec = UNetSpec(4, 3, width=8, multipliers=(1,), attention_resolutions=(), block="adm")
    spec = replace(spec, scale_shift=True, skip_rescale=False, init_scale=1.0)
    block = ResidualBlock(8, 8, spec, resample=resample, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    embedding = jax.random.normal(jax.random.key(1), (2, 32))

    def silu(x):
        return x / (1.0 + jnp.exp(-x))

    resized = mean_down if resample == "down" else lambda x: x
    scale_and_shift = block.embedding(embedding)
    given = scale_and_shift.reshape(2, 1, 1, 16)
    h = block.norm1(block.conv0(resized(silu(block.norm0(x))), False))
    h = block.conv1(silu(h * (1.0 + given[..., :8]) + given[..., 8:]), False)
    found = block(x, scale_and_shift, None, False)
    # The same sums of size 1, fused in other ways.
    np.testing.assert_allclose(found, resized(x) + h, rtol=0, atol=1e-5)
    wide = ResidualBlock(8, 12, spec, resample=resample, rngs=nnx.Rngs(0))
    assert block.shortcut is None and wide.shortcut is not None


def test_scale_and_shift_of_constants():
    """Of images without contrast the norm leaves its bias, 2: 2 (1 + 1/2) + 1 = 4 is activated. The
    first half of the embedding is the scale (Dhariwal, Nichol 2021, section 3)."""
    spec = UNetSpec(4, 3, width=8, multipliers=(1,), attention_resolutions=(), block="adm")
    spec = replace(spec, scale_shift=True, skip_rescale=False, init_scale=1.0)
    block = ResidualBlock(8, 8, spec, rngs=nnx.Rngs(0))
    nothing = np.zeros((3, 3, 8, 8), np.float32)
    same = nothing.copy()
    same[1, 1] = np.eye(8)
    block.conv0.kernel[...], block.conv1.kernel[...] = jnp.asarray(nothing), jnp.asarray(same)
    block.embedding.kernel[...] = jnp.asarray(np.zeros((32, 16), np.float32))
    block.embedding.bias[...] = jnp.asarray(np.repeat([0.5, 1.0], 8), jnp.float32)
    block.norm1.bias[...] = jnp.asarray(np.full(8, 2.0, np.float32))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 4, 4, 8)))
    given = block.embedding(jnp.asarray(np.ones((2, 32), np.float32)))
    found = np.asarray(block(jnp.asarray(x), given, None, False)) - x
    np.testing.assert_allclose(found, np.full(x.shape, 3.928055), rtol=0, atol=2e-6)  # silu(4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dense_layers_together_are_the_layers_one_by_one(dtype):
    """Of small whole numbers, whose sums are exact in any order. The widths differ."""
    layers = [Dense(3, m, dtype=np.dtype(dtype), rngs=nnx.Rngs(0)) for m in (2, 5, 1)]
    for number, layer in enumerate(layers):
        layer.kernel[...] = jnp.round(10.0 * layer.kernel[...])
        layer.bias[...] += number
    x = jnp.asarray([[1.0, -2.0, 4.0], [3.0, 0.0, -1.0]], jnp.float32)
    for layer, found in zip(layers, dense_together(layers, x), strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, layer(x))


def test_pixels_features_of_one_pixel():
    """All sines before all cosines, and of each f all channels: of 1/2, -1/3 and f = 1, 4."""
    found = input_features(jnp.asarray([0.5, -1 / 3], jnp.float32).reshape(1, 1, 1, 2), (1.0, 4.0))
    root = 0.8660254
    wanted = [1.0, -root, 0.0, root, 0.0, 0.5, 1.0, -0.5]
    np.testing.assert_allclose(found.ravel(), wanted, rtol=0, atol=2e-6)  # angles of up to 2 pi


def test_embeddings_follow_their_formulas():
    noise = np.asarray([[0.0], [0.5], [999.0]])
    half = 3
    frequencies = 10000.0 ** (-np.arange(half) / (half - 1))
    angles = noise * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((3, 1))], axis=1)
    # Angles up to 999 are rounded at 3e-5.
    out = positional_features(jnp.asarray(noise, jnp.float32), 7)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-5)
    angles = noise * 10000.0 ** (-np.arange(half) / half)
    out = positional_features(jnp.asarray(noise, jnp.float32), 6, to_the_end=False)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-5)

    x = jnp.asarray(np.linspace(-1, 1, 8), jnp.float32).reshape(1, 2, 2, 2)
    out = input_features(x, (1.0, 4.0))
    wide = np.asarray(x, np.float64)
    parts = [wave(f * np.pi * wide) for wave in (np.sin, np.cos) for f in (1.0, 4.0)]
    np.testing.assert_allclose(out, np.concatenate(parts, axis=-1), rtol=0, atol=2e-6)
