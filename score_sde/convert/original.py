"""The modules of the original code bases' networks, in their order, with their names and ours.

Their modules stand in one order: a list in PyTorch (`all_modules.17`), a counter for each class in
Flax (`ResnetBlockDDPMpp_3`). `modules` walks it for a network of ours; whoever reads a checkpoint
gets from `arrays` where each array belongs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


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

    `layer` tells how it is laid out: "conv", "dense", "nin", "norm" or "fourier".
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


def modules(arguments: Mapping[str, Any]) -> Iterator[Module]:
    """The modules of the network that `UNet(**arguments)` is, in the original's order."""
    a = arguments
    levels = len(a["multipliers"])
    widths = [a["width"] * multiplier for multiplier in a["multipliers"]]
    attends = [a["image_size"] // 2**i in a["attention_resolutions"] for i in range(levels)]
    ddpm, resampled = a["block"] == "ddpm", a["resample_with_conv"]

    def residual(path: str, n: int, m: int, resample: bool = False) -> Module:
        parts = [("GroupNorm_0", "norm", "norm0"), ("Conv_0", "conv", "conv0")]
        # PyTorch's blocks have this layer even where the network is not told the noise level.
        parts += [("Dense_0", "dense", "embedding" if a["conditional"] else "")]
        parts += [("GroupNorm_1", "norm", "norm1"), ("Conv_1", "conv", "conv1")]
        if n != m and ddpm:
            parts += [("NIN_0", "nin", "shortcut")]
        elif n != m or resample:
            parts += [("Conv_2", "conv", "shortcut")]
        return Module(a["block"], path, tuple(parts))

    def resampling(kind: str, path: str, conv: bool) -> Module:
        layer = ("Conv2d_0", "fir_conv", "conv") if a["fir"] else ("Conv_0", "conv", "conv")
        return Module(kind, path, (layer,) if conv else ())

    if a["embedding"] == "fourier":
        path = "condition" if a["conditional"] else ""
        yield Module("fourier", path, (("", "fourier", ""),))
    if a["conditional"]:
        yield Module("dense", "condition/dense0", (("", "dense", ""),))
        yield Module("dense", "condition/dense1", (("", "dense", ""),))
    yield Module("conv", "stem", (("", "conv", ""),))

    n, kept = a["width"], [a["width"]]
    for level, m in enumerate(widths):
        for index in range(a["num_blocks"]):
            yield residual(f"encoder/level{level}_block{index}", n, m)
            n = m
            if attends[level]:
                yield Module("attention", f"encoder/level{level}_attention{index}", ATTENTION)
            kept.append(n)
        if level == levels - 1:
            break
        if ddpm:
            yield resampling("down", f"encoder/level{level}_down", resampled)
        else:
            yield residual(f"encoder/level{level}_down", n, n, resample=True)
        if a["progressive_input"] == "residual":
            yield resampling("down", f"encoder/level{level}_input", True)
        elif a["progressive_input"] == "input_skip":
            yield Module("down", "", (), listed=False)
            yield Module("combine", f"encoder/level{level}_input", (("Conv_0", "conv", "conv"),))
            n *= 2 if a["combine"] == "cat" else 1
        kept.append(n)

    yield residual("middle/block0", n, n)
    yield Module("attention", "middle/attention", ATTENTION)
    yield residual("middle/block1", n, n)

    for level in reversed(range(levels)):
        m = widths[level]
        for index in range(a["num_blocks"] + 1):
            yield residual(f"decoder/level{level}_block{index}", n + kept.pop(), m)
            n = m
            if attends[level] and a["decoder_attention"] == "every":
                yield Module("attention", f"decoder/level{level}_attention{index}", ATTENTION)
        if attends[level] and a["decoder_attention"] == "once":
            yield Module("attention", f"decoder/level{level}_attention", ATTENTION)
        lowest = level == levels - 1
        if a["progressive_output"] == "residual" and not lowest:
            yield resampling("up", f"decoder/level{level}_output", True)
        elif a["progressive_output"] != "none":
            if not lowest:
                yield Module("up", "", (), listed=False)
            yield Module("norm", f"decoder/level{level}_output_norm", (("", "norm", ""),))
            yield Module("conv", f"decoder/level{level}_output", (("", "conv", ""),))
        if level > 0 and ddpm:
            yield resampling("up", f"decoder/level{level}_up", resampled)
        elif level > 0:
            yield residual(f"decoder/level{level}_up", n, n, resample=True)
    if a["progressive_output"] != "output_skip":
        yield Module("norm", "head_norm", (("", "norm", ""),))
        yield Module("conv", "head", (("", "conv", ""),))


def arrays(arguments: Mapping[str, Any]) -> Iterator[Array]:
    """Every array of the original's network, in the order of PyTorch's `named_parameters`.

    Arrays that PyTorch's network has and ours does not (of an unconditional one) have no path.
    """
    number, counters = 0, dict.fromkeys(FLAX_CLASSES, 0)
    for module in modules(arguments):
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
