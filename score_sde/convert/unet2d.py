"""What the config.json of a diffusers `UNet2DModel` says, in our words."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from score_sde.errors import UserError

MOST_LEVELS = 20  # no image can be halved as often

# Values of keys that config.json lacks: the defaults of the class.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("sample_size", "time_embedding_dim", "attn_norm_num_groups")),
    **dict.fromkeys(("class_embed_type", "num_class_embeds")),
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
}

# The two networks: their blocks (without attention), and the same as settings of `config.model`.
PLAIN, SKIP = ("DownBlock2D", "UpBlock2D"), ("SkipDownBlock2D", "SkipUpBlock2D")
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    PLAIN: {
        "block": "ddpm",
        "resample_with_conv": True,
        "fir": False,
        "skip_rescale": False,
        "progressive_input": "none",
        "progressive_output": "none",
        "decoder_attention": "every",
    },
    SKIP: {
        "block": "biggan",
        "fir": True,
        "skip_rescale": True,
        "progressive_input": "input_skip",
        "combine": "sum",
        "progressive_output": "output_skip",
        "decoder_attention": "once",
        "norm_groups": 0,
    },
}


def value(found: Mapping[str, Any], key: str) -> Any:
    """What a config.json says, or leaves to the class."""
    return found.get(key, DEFAULTS[key])


def architecture(found: Mapping[str, Any], where: str, image_size: Any) -> dict[str, Any]:
    """Return the settings of ours that describe a `UNet2DModel`, by their keys in a config.

    Args:
        found: the content of config.json.
        where: its path, for messages.
        image_size: of the network, if config.json does not say it; 0 for unknown.

    Raises:
        UserError: our network cannot be that one; all reasons in one line.
    """
    get = {key: value(found, key) for key in DEFAULTS}
    kind, attends = _blocks(get, where)
    widths = get["block_out_channels"]
    wrong, size = _reasons(get, kind, attends, where, image_size)
    if wrong:
        raise UserError(f"{where} is a network that ours cannot be: {', '.join(wrong)}")
    head, attended = get["attention_head_dim"], _attended(widths, attends)
    sides = size if isinstance(size, tuple) else (size,)
    levels = "positional" if get["freq_shift"] == 1 else "vaswani"
    model = {
        **SETTINGS[kind],
        **({"norm_groups": get["norm_num_groups"]} if kind == PLAIN else {}),
        "name": "unet",
        "width": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": get["layers_per_block"],
        "attention_resolutions": tuple(
            min(sides) // 2**level for level, attention in enumerate(attends) if attention
        ),
        "head_width": 0 if head is None or attended == {head} else head,
        "num_heads": 1,
        "scale_shift": False,
        "embedding_features": 0,
        "level_scale": 1.0,
        "learned_variance": False,
        "symmetric_padding": kind == PLAIN and get["downsample_padding"] == 1,
        "norm_eps": get["norm_eps"],
        "activation": "swish",
        "conditional": True,
        "embedding": "fourier" if get["time_embedding_type"] == "fourier" else levels,
        "class_conditional": bool(get["num_class_embeds"]),
        "centered": not get["center_input_sample"],
        "input_frequencies": (),
    }
    data = {
        "image_size": size,
        "channels": get["in_channels"],
        "num_classes": get["num_class_embeds"] or 0,
    }
    ours = {f"model.{key}": value for key, value in model.items()}
    return ours | {f"data.{key}": value for key, value in data.items()}


def _reasons(
    get: Mapping[str, Any],
    kind: tuple[str, str],
    attends: list[bool],
    where: str,
    image_size: Any,
) -> tuple[list[str], Any]:
    """Why our network cannot be this one, and its image size: a number, or (height, width)."""
    widths = get["block_out_channels"]
    counts = (*widths, get["layers_per_block"], get["in_channels"])
    if not all(type(value) is int and 0 < value < 2**31 for value in counts):
        keys = "block_out_channels, layers_per_block, in_channels"
        raise UserError(f"{where}: {keys}: allowed are positive integers below 2**31")
    wrong = [
        f"{key} is {get[key]!r} (ours: {' or '.join(map(repr, values))})"
        for key, values in _allowed(get, kind).items()
        if not any(_same(get[key], value) for value in values)
    ]
    if kind == SKIP and min(itertools.compress(widths, attends), default=128) < 128:
        wrong.append("attention at a width below 128 has 32 groups (ours: a quarter of the width)")
    eps, head, groups = get["norm_eps"], get["attention_head_dim"], get["norm_num_groups"]
    if kind == PLAIN and (type(groups) is not int or groups < 1):
        wrong.append(f"norm_num_groups is {groups!r} (ours: positive integers)")
    if type(eps) is not float or not 0 < eps < 1:
        wrong.append(f"norm_eps is {eps!r} (ours: numbers above 0 and below 1)")
    attended = _attended(widths, attends)
    if head is not None and (type(head) is not int or head < 1 or any(w % head for w in attended)):
        wrong.append(f"attention_head_dim is {head!r} (ours: None or a divisor of {attended})")
    classes, size = get["num_class_embeds"] or 0, get["sample_size"]
    if type(classes) is not int or not 0 <= classes < 2**31:
        wrong.append(f"num_class_embeds is {classes!r} (ours: None or a number)")
    size = image_size if size is None else size
    sides = [*size] if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        wrong.append(f"sample_size is {get['sample_size']!r} (ours: an integer, or two)")
    elif min(sides) < 1:
        wrong.append("sample_size is None (ours: config.data.image_size then says it)")
    if any(width % widths[0] for width in widths):
        wrong.append(f"block_out_channels is {widths} (ours: multiples of the first)")
    return wrong, sides[0] if len(set(sides)) == 1 else tuple(sides)


def _attended(widths: list[int], attends: list[bool]) -> set[int]:
    """The widths of the layers with attention, the middle's among them."""
    return {*itertools.compress(widths, attends), widths[-1]}


def _blocks(get: Mapping[str, Any], where: str) -> tuple[tuple[str, str], list[bool]]:
    """The kind of the network, a key of SETTINGS, and which levels have attention."""
    down, up, widths = get["down_block_types"], get["up_block_types"], get["block_out_channels"]
    if all(isinstance(value, list) and value for value in (down, up, widths)):
        if max(map(len, (down, up, widths))) > MOST_LEVELS:
            raise UserError(f"{where}: block_out_channels: allowed are up to {MOST_LEVELS} levels")
        attends = [str(name).startswith("Attn") for name in down]
        for kind in SETTINGS:
            expected = [
                [f"Attn{name}" if attention else name for attention in attends] for name in kind
            ]
            if [down, up[::-1]] == expected and len(widths) == len(down):
                return kind, attends
    raise UserError(
        f"{where}: down_block_types {down!r:.200}, up_block_types {up!r:.200} and "
        f"block_out_channels {widths!r:.80} make no network of ours: all blocks must be "
        f"{' and '.join(PLAIN)} or all {' and '.join(SKIP)}, with Attn before the name on the same "
        "levels down and up"
    )


def _allowed(get: Mapping[str, Any], kind: tuple[str, str]) -> dict[str, tuple[Any, ...]]:
    """The values that our network allows, for each key that is no setting of ours."""
    widths = get["block_out_channels"]
    allowed: dict[str, tuple[Any, ...]] = {
        "out_channels": (get["in_channels"],),
        "time_embedding_type": ("positional", "fourier"),
        "time_embedding_dim": (None, 4 * widths[0]),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (math.sqrt(2.0) if kind == SKIP else 1.0,),
        "act_fn": ("silu", "swish"),
        "attn_norm_num_groups": (None, get["norm_num_groups"]),
        "resnet_time_scale_shift": ("default",),
        "add_attention": (True,),
        "class_embed_type": (None,),
    }
    if get["time_embedding_type"] == "positional":
        allowed |= {"freq_shift": (0, 1), "flip_sin_to_cos": (False, True)}
    if kind == PLAIN:
        allowed |= {
            "downsample_padding": (0, 1),
            "downsample_type": ("conv",),
            "upsample_type": ("conv",),
        }
    else:  # of the middle and the head; the blocks have a quarter of their width, at most 32
        allowed["norm_num_groups"] = (None, *((32,) if widths[0] >= 128 else ()))
    return allowed


def _same(value: Any, right: Any) -> bool:
    """Whether two values are equal, numbers up to the digits that a file drops."""
    if type(value) in (int, float) and type(right) in (int, float):
        return math.isclose(value, right, rel_tol=1e-6)
    return bool(value == right)
