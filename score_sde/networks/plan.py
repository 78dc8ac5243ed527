"""The U-Net's topology, written once: which block follows which.

`plan` lists the blocks in the order in which data pass through them. Whoever builds, evaluates,
counts or converts a network walks this list. Each kind of block is one step on five variables: `h`,
the features of the current level; the `skips` that the encoder keeps for the decoder; the
`pyramid`, a copy of the input or output at the level's size; the `image` that becomes the output;
and `a`, what the last normalization and activation made of h.

    embedding     embedding = MLP(features of the noise level)
    labels        embedding = embedding + a vector of the class
    augmentation  embedding = embedding + a linear map of what was done to the image
    gate          weights of the input's Fourier features, from the embedding
    stem          h = conv(x)
    residual      h = residual block(h, Dense(embedding)), which may resample ("up", "down")
    attention     h = attention(h)
    down, up      h = half, double the size of h
    input         h = pyramid = half the size of pyramid + h
    combine       pyramid = half the size of pyramid, h = pyramid combined with h
    norm          a = activation(norm(h))
    output_start  pyramid = conv(a)
    output        h = pyramid = double the size of pyramid + h
    image         image = conv(a)
    add_image     image = double the size of image + conv(a)
    logits        image = Dense(mean of a over the pixels), of a classifier
"""

from collections.abc import Iterator
from typing import NamedTuple

from score_sde.networks.spec import UNetSpec


class Block(NamedTuple):
    """One block.

    Attributes:
        kind: what it does, see the module's table.
        path: of its module in the network and of its parameters, such as `encoder/level0_block1`.
        in_channels, out_channels: of its input and output. For `combine` the input is the image.
        level: 0 for the images' own size, 1 for half of it, and so on.
        resample: "up" or "down" where a residual block also changes the size, else "none".
        keeps: the encoder's h after this block is a skip.
        reads: h and the last skip that is left, concatenated, are this block's input.
    """

    kind: str
    path: str
    in_channels: int
    out_channels: int
    level: int = 0
    resample: str = "none"
    keeps: bool = False
    reads: bool = False


def plan(spec: UNetSpec) -> tuple[Block, ...]:
    """The blocks of a network, in order."""
    skips = [spec.width]  # the widths of those that are kept
    encoder = tuple(_encoder(spec, skips))
    middle = tuple(_middle(spec, skips[-1]))
    if spec.logits:
        return (*_start(spec), *encoder, *middle, *_classifier(spec, skips[-1]))
    return (*_start(spec), *encoder, *middle, *_decoder(spec, skips), *_head(spec))


def _start(spec: UNetSpec) -> Iterator[Block]:
    features = 2 * spec.channels * len(spec.input_frequencies)
    wide = spec.embedding_width
    if spec.conditional:
        yield Block("embedding", "condition", wide // 4, wide)
    if spec.num_classes:
        yield Block("labels", "labels", spec.num_classes, wide)
    if spec.augmentation:
        yield Block("augmentation", "augmentation", spec.augmentation, wide)
    if features:
        yield Block("gate", "gate", wide, features)
    yield Block("stem", "stem", spec.channels + features, spec.width, keeps=True)


def _encoder(spec: UNetSpec, skips: list[int]) -> Iterator[Block]:
    n, pyramid = spec.width, spec.channels
    for level, m in enumerate(spec.widths):
        at = f"encoder/level{level}"
        attends = spec.sizes[level] in spec.attention_resolutions
        for index in range(spec.num_blocks):
            yield Block("residual", f"{at}_block{index}", n, m, level, keeps=not attends)
            if attends:
                yield Block("attention", f"{at}_attention{index}", m, m, level, keeps=True)
            n = m
            skips.append(n)
        if level == len(spec.widths) - 1:
            return
        alone = spec.progressive_input == "none"
        if spec.block != "ddpm":
            yield Block("residual", f"{at}_down", n, n, level, "down", keeps=alone)
        else:
            yield Block("down", f"{at}_down", n, n, level, keeps=alone)
        if spec.progressive_input == "residual":
            yield Block("input", f"{at}_input", pyramid, n, level, keeps=True)
            pyramid = n
        elif spec.progressive_input == "input_skip":
            yield Block("combine", f"{at}_input", spec.channels, n, level, keeps=True)
            n *= 2 if spec.combine == "cat" else 1
        skips.append(n)


def _middle(spec: UNetSpec, n: int) -> Iterator[Block]:
    level = len(spec.widths) - 1
    yield Block("residual", "middle/block0", n, n, level)
    yield Block("attention", "middle/attention", n, n, level)
    yield Block("residual", "middle/block1", n, n, level)


def _classifier(spec: UNetSpec, n: int) -> Iterator[Block]:
    level = len(spec.widths) - 1
    yield Block("norm", "head_norm", n, n, level)
    yield Block("logits", "head", n, spec.logits, level)


def _decoder(spec: UNetSpec, skips: list[int]) -> Iterator[Block]:
    n = skips[-1]
    for level, m in reversed(tuple(enumerate(spec.widths))):
        at = f"decoder/level{level}"
        attends = spec.sizes[level] in spec.attention_resolutions
        for index in range(spec.num_blocks + 1):
            yield Block("residual", f"{at}_block{index}", n + skips.pop(), m, level, reads=True)
            if attends and spec.decoder_attention == "every":
                yield Block("attention", f"{at}_attention{index}", m, m, level)
            n = m
        if attends and spec.decoder_attention == "once":
            yield Block("attention", f"{at}_attention", m, m, level)
        yield from _output(spec, level, m)
        if level > 0 and spec.block != "ddpm":
            yield Block("residual", f"{at}_up", m, m, level, "up")
        elif level > 0:
            yield Block("up", f"{at}_up", m, m, level)


def _output(spec: UNetSpec, level: int, n: int) -> Iterator[Block]:
    """A level's step of the output pyramid."""
    path, lowest = f"decoder/level{level}_output", level == len(spec.widths) - 1
    if spec.progressive_output == "output_skip":
        yield Block("norm", f"{path}_norm", n, n, level)
        yield Block("image" if lowest else "add_image", path, n, spec.out_channels, level)
    elif spec.progressive_output == "residual" and lowest:
        yield Block("norm", f"{path}_norm", n, n, level)
        yield Block("output_start", path, n, n, level)
    elif spec.progressive_output == "residual":
        yield Block("output", path, spec.widths[level + 1], n, level)


def _head(spec: UNetSpec) -> Iterator[Block]:
    if spec.progressive_output != "output_skip":
        n = spec.widths[0]
        yield Block("norm", "head_norm", n, n)
        yield Block("image", "head", n, spec.out_channels)
