"""State dicts of OpenAI's improved-diffusion and guided-diffusion: the names and shapes of their
arrays, written here by hand (tests/parity has a network in PyTorch)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from score_sde.convert import openai
from score_sde.networks import UNetSpec

Shapes = dict[str, tuple[int, ...]]


class Theirs(NamedTuple):
    """A network by their words: `widths` of its levels, and the `features` of the noise level.

    `updown`: residual blocks resample. `attended`: levels with attention.
    """

    features: int
    widths: tuple[int, ...]
    blocks: int
    attended: tuple[int, ...]
    updown: bool = True
    scale_shift: bool = True
    classes: int = 0
    channels: int = 3
    outputs: int = 6


TINY = Theirs(32, (32, 64), 1, (1,))


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv(name: str, n: int, m: int, size: int = 3) -> Shapes:
    return layer(name, m, n, size, size)


def residual(name: str, net: Theirs, n: int, m: int) -> Shapes:
    wide = 2 * m if net.scale_shift else m
    return {
        **layer(f"{name}.in_layers.0", n),
        **conv(f"{name}.in_layers.2", n, m),
        **layer(f"{name}.emb_layers.1", wide, 4 * net.features),
        **layer(f"{name}.out_layers.0", m),
        **conv(f"{name}.out_layers.3", m, m),
        **(conv(f"{name}.skip_connection", n, m, 1) if n != m else {}),
    }


def attention(name: str, n: int) -> Shapes:
    return {
        **layer(f"{name}.norm", n),
        **layer(f"{name}.qkv", 3 * n, n, 1),
        **layer(f"{name}.proj_out", n, n, 1),
    }


def encoder(net: Theirs) -> tuple[Shapes, list[int]]:
    """All before the decoder, and the widths of what it keeps."""
    wide, n = 4 * net.features, net.widths[0]
    shapes = layer("time_embed.0", wide, net.features) | layer("time_embed.2", wide, wide)
    if net.classes:
        shapes["label_emb.weight"] = (net.classes, wide)
    shapes |= conv("input_blocks.0.0", net.channels, n)
    kept = [n]
    for level, m in enumerate(net.widths):
        for _ in range(net.blocks):
            shapes |= residual(f"input_blocks.{len(kept)}.0", net, n, m)
            shapes |= attention(f"input_blocks.{len(kept)}.1", m) if level in net.attended else {}
            n = m
            kept.append(n)
        if level + 1 < len(net.widths):
            at = f"input_blocks.{len(kept)}.0"
            shapes |= residual(at, net, n, n) if net.updown else conv(f"{at}.op", n, n)
            kept.append(n)
    shapes |= residual("middle_block.0", net, n, n) | attention("middle_block.1", n)
    return shapes | residual("middle_block.2", net, n, n), kept


def shapes_of(net: Theirs) -> Shapes:
    shapes, kept = encoder(net)
    n, number = kept[-1], 0
    for level, m in reversed(tuple(enumerate(net.widths))):
        for index in range(net.blocks + 1):
            at, inside = f"output_blocks.{number}", 1
            shapes |= residual(f"{at}.0", net, n + kept.pop(), m)
            if level in net.attended:
                shapes |= attention(f"{at}.1", m)
                inside = 2
            if level and index == net.blocks:
                up = f"{at}.{inside}"
                shapes |= residual(up, net, m, m) if net.updown else conv(f"{up}.conv", m, m)
            n, number = m, number + 1
    return shapes | layer("out.0", n) | conv("out.2", n, net.outputs)


def classifier_of(net: Theirs) -> Shapes:
    """That of guided-diffusion, with its pooling by attention."""
    shapes, kept = encoder(net)
    n = kept[-1]
    return {
        **shapes,
        **layer("out.0", n),
        "out.2.positional_embedding": (n, 17),
        **layer("out.2.qkv_proj", 3 * n, n, 1),
        **layer("out.2.c_proj", 1000, n, 1),
    }


def arrays_of(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def state_of(params: Mapping[str, np.ndarray], spec: UNetSpec) -> dict[str, np.ndarray]:
    """The state dict of our network of one head, from its parameters by their paths."""
    assert spec.num_heads == 1 and not spec.head_width
    state: dict[str, np.ndarray] = {}
    for name, path in openai.names(spec).items():
        for leaf in ("kernel", "scale", "bias"):
            if f"{path}/{leaf}" in params:
                array = np.asarray(params[f"{path}/{leaf}"])
                state[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = _theirs(name, array)
    first = "time_embed.0.weight"
    state[first] = np.roll(state[first], spec.embedding_width // 8, axis=1)  # cosines come first
    for name in [name for name in state if ".qkv.query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace(".query", "")] = np.concatenate(parts)
    return state


def _theirs(name: str, array: np.ndarray) -> np.ndarray:
    """A map's array in their layout."""
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    if array.ndim == 2 and (".qkv" in name or "proj_out" in name):
        return array[:, :, None]
    return array[:, :, None, None] if array.ndim == 2 and "skip_connection" in name else array
