"""The U-Net of the DDPM, DDPM++, NCSN++ and ADM family (Ho et al. 2020; Song et al. 2021, appendix
H; Dhariwal, Nichol 2021).

One class; what differs between the published networks is in its `UNetSpec`. The network knows
nothing of diffusion processes: it maps images and a noise level per image to images.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from score_sde.networks import resampling
from score_sde.networks.blocks import (
    AttentionBlock,
    Combine,
    Resample,
    ResidualBlock,
    act,
    add,
    norm,
)
from score_sde.networks.convolution import Conv
from score_sde.networks.embeddings import (
    LabelEmbedding,
    NoiseEmbedding,
    VectorEmbedding,
    check_names,
    input_features,
)
from score_sde.networks.layers import Dense, dense_together, dropout_states, statistics_dtype
from score_sde.networks.plan import Block, plan
from score_sde.networks.spec import UNetSpec


class UNet(nnx.Module):
    """DDPM++ (the defaults), NCSN++ (`fir=True, progressive_input="residual"`), DDPM
    (`block="ddpm", skip_rescale=False, norm_groups=32, num_blocks=2`) and ADM (`block="adm",
    scale_shift=True, head_width=64, decoder_attention="every", skip_rescale=False`).

    `plan` says which blocks there are and what each does. Every block's module stands at the
    block's path, such as `encoder/level0_block1`, and its parameters too.

    Args:
        spec: the settings.
        rngs: its `params` stream draws the initial values.
    """

    Spec = UNetSpec
    rank = 3  # axes of an item

    def __init__(self, spec: UNetSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        groups: dict[str, dict[str, nnx.Module]] = {}
        for block in plan(spec):
            group, _, name = block.path.rpartition("/")
            groups.setdefault(group, {})[name] = _module(block, spec, rngs)
        for name, module in groups.pop("").items():
            setattr(self, name, module)
        for group, modules in groups.items():
            setattr(self, group, nnx.Dict(modules))

    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Mapping[str, jax.Array] | None = None,
        *,
        dropout_key: jax.Array | None = None,
        reverse_only: bool = False,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: images (B, H, W, C), float32.
            noise: the noise level (B,), float32: 999 t or a log SNR. Without effect where
                `conditional` is False.
            condition: `labels` (B,), int32, for a network with classes. A label outside
                0 ... num_classes - 1, such as -1, is an image without label; without `labels`
                the whole batch is. `augmentation` (B, parameters), likewise; without it nothing was
                done to the images.
            dropout_key: key of the dropout masks; None drops nothing.
            reverse_only: take the convolution whose reverse-mode gradient is fast everywhere. It
                has no forward mode: for `jax.jvp` leave it False.

        Returns:
            (B, H, W, C), with `learned_variance` (B, H, W, 2 C), or a classifier's (B, logits),
            float32 (float64 if that is the dtype of the computation).

        Raises:
            ValueError: a condition that the network does not take, such as labels without classes.
        """
        x = x.astype(statistics_dtype(self.spec.dtype))
        if not self.spec.centered:
            x = 2.0 * x - 1.0
        embedding = self._embedding(noise, condition or {})
        count = sum(block.kind == "residual" for block in plan(self.spec))
        masks = iter(dropout_states(dropout_key, self.spec.dropout, count))
        return self._blocks(x, embedding, masks, reverse_only)

    def _blocks(
        self,
        x: jax.Array,
        embedding: jax.Array | None,
        masks: Iterator[jax.Array | None],
        reverse_only: bool,
    ) -> jax.Array:
        """The blocks one after the other; the table in `plan` says what each kind does."""
        spec = self.spec
        run = _rematerialized if spec.remat and reverse_only else lambda module: module
        h = self._input(x, embedding)
        pyramid = image = a = x
        skips: list[jax.Array] = []
        given = self._given(embedding)
        for block in plan(spec):
            module = self._at(block.path)
            if block.reads:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            match block.kind:
                case "stem" | "down" | "up":
                    h = module(h, reverse_only)
                case "residual":
                    its = given.get(block.path)
                    h = run(module)(h, its, next(masks), reverse_only=reverse_only)
                case "attention":
                    h = run(module)(h)
                case "input" | "output":
                    h = pyramid = add(spec, module(pyramid, reverse_only), h)
                case "combine":
                    pyramid = resampling.down(pyramid, spec.fir)
                    h = module(pyramid, h, reverse_only)
                case "norm":
                    a = act(spec, module(h))
                case "output_start":
                    pyramid = module(a, reverse_only)
                case "image":
                    image = module(a, reverse_only)
                case "logits":
                    image = module(jnp.mean(a, axis=(1, 2)))
                case "add_image":
                    image = resampling.up(image, spec.fir) + module(a, reverse_only)
            if block.keeps:
                skips.append(h)
        return image.astype(x.dtype)

    def _at(self, path: str) -> Any:
        """The module of a block."""
        group, _, name = path.rpartition("/")
        return getattr(self, group)[name] if group else getattr(self, name)

    def _embedding(self, noise: jax.Array, condition: Mapping[str, jax.Array]) -> jax.Array | None:
        """The activated embedding of the noise level and the condition: (B, embedding_width)."""
        known = {"labels": self.spec.num_classes, "augmentation": self.spec.augmentation}
        check_names(condition, [name for name, number in known.items() if number])
        if not self.spec.conditional:
            return None
        embedding = self._at("condition")(self.spec.level_scale * noise)
        if "labels" in condition:
            embedding += self._at("labels")(condition["labels"]).astype(embedding.dtype)
        if "augmentation" in condition:
            moved = self._at("augmentation")(condition["augmentation"])
            embedding += moved.astype(embedding.dtype)
        # Every block's Dense layer reads it activated: once here instead of once for each.
        return act(self.spec, embedding)

    def _given(self, embedding: jax.Array | None) -> dict[str, jax.Array]:
        """What each residual block's Dense layer makes of the embedding, by the block's path."""
        if embedding is None:
            return {}
        paths = [block.path for block in plan(self.spec) if block.kind == "residual"]
        layers = [self._at(path).embedding for path in paths]
        return dict(zip(paths, dense_together(layers, embedding), strict=True))

    def _input(self, x: jax.Array, embedding: jax.Array | None) -> jax.Array:
        """What the stem reads: x and its gated Fourier features."""
        if embedding is None or not self.spec.input_frequencies:
            return x
        gate = jax.nn.sigmoid(self._at("gate")(embedding)).astype(x.dtype)
        features = input_features(x, self.spec.input_frequencies)
        return jnp.concatenate([x, gate.reshape(len(x), 1, 1, -1) * features], axis=-1)


def _module(block: Block, spec: UNetSpec, rngs: nnx.Rngs) -> nnx.Module:
    """The module of a block with its initial parameters."""
    n, m, dtype = block.in_channels, block.out_channels, spec.dtype
    match block.kind:
        case "embedding":
            return NoiseEmbedding(n, spec, rngs=rngs)
        case "labels":
            return LabelEmbedding(n, m, rngs=rngs)
        case "augmentation":
            return VectorEmbedding(n, m, rngs=rngs)
        case "gate" | "logits":
            return Dense(n, m, dtype=dtype, rngs=rngs)
        case "residual":
            return ResidualBlock(n, m, spec, resample=block.resample, rngs=rngs)
        case "attention":
            return AttentionBlock(n, spec, rngs=rngs)
        case "down" | "up":
            up, conv = block.kind == "up", spec.resample_with_conv
            return Resample(n, m, spec, up=up, conv=conv, rngs=rngs)
        case "input" | "output":
            return Resample(n, m, spec, up=block.kind == "output", conv=True, rngs=rngs)
        case "combine":
            return Combine(n, m, spec, rngs=rngs)
        case "norm":
            return norm(spec, n)
        case "stem" | "output_start":
            return Conv(n, m, dtype=dtype, rngs=rngs)
        case "image" | "add_image":
            return Conv(n, m, scale=spec.init_scale, dtype=dtype, rngs=rngs)
    raise AssertionError(block.kind)


def _rematerialized(module: nnx.Module) -> Callable[..., jax.Array]:
    """A module's call whose backward pass computes its inner arrays again."""

    def call(*arrays: Any, **options: bool) -> jax.Array:
        graph, params = nnx.split(module)

        def pure(params: Any, *arrays: Any) -> jax.Array:
            return nnx.merge(graph, params)(*arrays, **options)

        return jax.checkpoint(pure)(params, *arrays)

    return call
