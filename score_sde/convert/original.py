"""The modules of the original code bases' networks, in their order, with their names and ours.

PyTorch keeps the modules in a list (`all_modules.17`). Flax counts them for each class
(`ResnetBlockDDPMpp_3`). Both follow the order of our plan. `arrays` yields where each array of a
checkpoint belongs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from score_sde.networks import UNetSpec
from score_sde.networks.plan import Block, plan
from score_sde.networks.spec import CHOICES


class Module(NamedTuple):
    """One module.

    Attributes:
        kind: its class, a key of `FLAX_CLASSES`.
        path: ours, such as `encoder/level0_block0`; "" for one without a counterpart.
        listed: it is in PyTorch's list (else an attribute without arrays).
        parts: its array-holding layers in the order in which they were made, (name, type, ours).
    """

    kind: str
    path: str
    parts: tuple[tuple[str, str, str], ...]
    listed: bool = True


class Array(NamedTuple):
    """One array: its keys in the two code bases, its path in ours ("" for none) and its kind.

    `layer` says how it is laid out: "conv", "dense", "nin", "norm" or "fourier".
    """

    torch: str
    flax: tuple[str, ...]
    path: str
    layer: str
    trained: bool


# Layers' arrays: (PyTorch's name, Flax's name, ours). FIR convolutions are Conv2d_0 in both.
LEAVES = {
    "conv": (("weight", "kernel", "kernel"), ("bias", "bias", "bias")),
    "fir_conv": (("weight", "weight", "kernel"), ("bias", "bias", "bias")),
    "dense": (("weight", "kernel", "kernel"), ("bias", "bias", "bias")),
    "nin": (("W", "W", "kernel"), ("b", "b", "bias")),
    "norm": (("weight", "scale", "scale"), ("bias", "bias", "bias")),
    "fourier": (("W", "W", "frequencies"),),
}
# Flax's class of each kind; those of the plain `ddpm` network have no "pp".
FLAX_CLASSES = {
    "fourier": "GaussianFourierProjection",
    "dense": "Dense",
    "conv": "Conv",
    "norm": "GroupNorm",
    "biggan": "ResnetBlockBigGANpp",
    "ddpm": "ResnetBlockDDPMpp",
    "attention": "AttnBlockpp",
    "down": "Downsample",
    "up": "Upsample",
    "combine": "Combine",
}
ATTENTION = (
    ("GroupNorm_0", "norm", "norm"),
    ("NIN_0", "nin", "query"),
    ("NIN_1", "nin", "key"),
    ("NIN_2", "nin", "value"),
    ("NIN_3", "nin", "output"),
)


def modules(spec: UNetSpec) -> Iterator[Module]:
    """The modules of the original's network of these settings, in the original's order.

    It has no classes, augmentation or input frequencies, so their blocks are left out.
    """
    if spec.embedding == "fourier":
        yield Module("fourier", "condition" if spec.conditional else "", _layer("fourier"))
    for block in plan(spec):
        path = block.path
        match block.kind:
            case "embedding":
                for part in ("dense0", "dense1"):
                    yield Module("dense", f"{path}/{part}", _layer("dense"))
            case "residual":
                yield _residual(block, spec)
            case "attention":
                yield Module("attention", path, ATTENTION)
            case "down" | "up":
                yield _resampling(block.kind, path, spec.fir, spec.resample_with_conv)
            case "input" | "output":
                yield _resampling("down" if block.kind == "input" else "up", path, spec.fir, True)
            case "combine":
                yield Module("down", "", (), listed=False)
                yield Module("combine", path, (("Conv_0", "conv", "conv"),))
            case "norm":
                yield Module("norm", path, _layer("norm"))
            case "add_image":
                yield Module("up", "", (), listed=False)
                yield Module("conv", path, _layer("conv"))
            case "stem" | "output_start" | "image":
                yield Module("conv", path, _layer("conv"))


def _layer(layer: str) -> tuple[tuple[str, str, str], ...]:
    """The parts of a module that is one layer."""
    return (("", layer, ""),)


def _residual(block: Block, spec: UNetSpec) -> Module:
    # PyTorch's blocks have the Dense layer even if they ignore the noise level.
    parts = [("GroupNorm_0", "norm", "norm0"), ("Conv_0", "conv", "conv0")]
    parts += [("Dense_0", "dense", "embedding" if spec.conditional else "")]
    parts += [("GroupNorm_1", "norm", "norm1"), ("Conv_1", "conv", "conv1")]
    if block.in_channels != block.out_channels and spec.block == "ddpm":
        parts += [("NIN_0", "nin", "shortcut")]
    elif block.in_channels != block.out_channels or block.resample != "none":
        parts += [("Conv_2", "conv", "shortcut")]
    kind = "ddpm" if spec.block == "ddpm" else "biggan"
    return Module(kind, block.path, tuple(parts))


def _resampling(kind: str, path: str, fir: bool, conv: bool) -> Module:
    layer = ("Conv2d_0", "fir_conv", "conv") if fir else ("Conv_0", "conv", "conv")
    return Module(kind, path, (layer,) if conv else ())


def arrays(spec: UNetSpec) -> Iterator[Array]:
    """Every array of the original's network, in the order of PyTorch's `named_parameters`.

    Arrays that PyTorch's network has and ours does not (of an unconditional one) have no path.
    """
    number, counters = 0, dict.fromkeys(FLAX_CLASSES, 0)
    for module in modules(spec):
        flax_module = f"{FLAX_CLASSES[module.kind]}_{counters[module.kind]}"
        counters[module.kind] += 1
        for name, layer, ours in module.parts:
            for torch_leaf, flax_leaf, leaf in LEAVES[layer]:
                places = (module.path, ours, leaf)
                known = module.path and (ours or not name)
                yield Array(
                    torch=".".join(filter(None, (f"all_modules.{number}", name, torch_leaf))),
                    flax=tuple(filter(None, (flax_module, name, flax_leaf))),
                    path="/".join(filter(None, places)) if known else "",
                    layer="conv" if layer == "fir_conv" else layer,
                    trained=layer != "fourier",
                )
        number += module.listed


Shapes = Mapping[Any, tuple[int, ...]]


def likeliest(spec: UNetSpec, placed: Callable[[UNetSpec], Shapes]) -> str:
    """Return the setting that is most likely another in a checkpoint, in words: the change of one
    setting that brings most names together, or the number that an array's shape tells.

    Args:
        spec: the settings that the checkpoint does not fit.
        placed: returns the shapes of its arrays by their paths in the network of such settings;
            an array without a place there keeps the name of its code base.

    Returns:
        "" where the checkpoint fits, or no single setting explains half of what does not.
    """

    def apart(spec: UNetSpec) -> int:
        paths = {array.path for array in arrays(spec) if array.path}
        return len(
            (paths | ({"labels/table"} if spec.num_classes else set())) ^ placed(spec).keys()
        )

    now = apart(spec)
    if not now:
        return _other_number(spec, placed(spec))
    best, key, value = now, "", None
    for other_key, other_value, other in _alternatives(spec):
        if apart(other) < best:
            best, key, value = apart(other), other_key, other_value
    return f"config.model.{key} = {value!r}" if 2 * best < now else ""


def _alternatives(spec: UNetSpec) -> Iterator[tuple[str, Any, UNetSpec]]:
    """The networks of one other setting that names show: its key and value, and the network's."""
    sizes = spec.sizes
    some = [
        tuple(size for bit, size in enumerate(sizes) if number >> bit & 1)
        for number in range(2 ** min(len(sizes), 8))
    ]
    choices = ("embedding", "progressive_input", "progressive_output")
    values: dict[str, list[Any]] = {
        "attention_resolutions": some,
        "num_blocks": [*range(1, 9)],
        "block": ["biggan", "ddpm"],
        **{key: [*CHOICES[key]] for key in choices},
        **{key: [False, True] for key in ("conditional", "resample_with_conv", "fir")},
    }
    for key, others in values.items():
        for value in others:
            with suppress(ValueError):  # it does not go with the other settings
                yield key, value, replace(spec, **{key: value})


def placed(found: Shapes, names: str, spec: UNetSpec) -> Shapes:
    """`placed` of `likeliest`, of shapes by the names of a code base, "torch" or "flax"."""
    places = {getattr(array, names): array.path for array in arrays(spec)}
    paths = {name: places.get(name, name) for name in found}
    return {path: found[name] for name, path in paths.items() if path}


def _other_number(spec: UNetSpec, shapes: Shapes) -> str:
    """The setting of a number that the shapes tell, where all names fit."""
    biases = [shapes["stem/bias"]]
    biases += [
        shapes[f"encoder/level{level}_block0/conv0/bias"] for level in range(len(spec.widths))
    ]
    if any(len(shape) != 1 or not shape[0] for shape in biases):  # no network's
        return ""
    width, *widths = (shape[0] for shape in biases)
    # Either code base's kernel has the 3 x 3 pixels and these two, in another order.
    channels = math.prod(shapes["stem/kernel"]) // (9 * width)
    if width != spec.width:
        return f"config.model.width = {width}"
    if channels != spec.channels:
        return f"config.data.channels = {channels}"
    if tuple(widths) != spec.widths:
        return f"config.model.multipliers = {tuple(each // width for each in widths)}"
    return ""
