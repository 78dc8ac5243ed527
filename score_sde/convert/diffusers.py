"""Reads a diffusers `UNet2DModel`: its folder with config.json and
diffusion_pytorch_model.safetensors, or the pipeline's folder that has this one as `unet`.

Two of its networks are ours: the one of the class's own defaults and of google/ddpm-cifar10-32 (Ho
et al. 2020), and that of google/ncsnpp-church-256 and its kin (Song et al. 2021 at 256 and 1024
pixels). `settings` returns what config.json and the scheduler's file say, as keys of our config.
`names` returns where each array belongs.

With Fourier features the class also takes the logarithm of sigma and divides its output by sigma.
Here these belong to the score: the condition `log_sigma` and the parameterization `score`.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.convert import scheduler
from score_sde.convert.foreign import Foreign, read_json, tensors
from score_sde.errors import UserError
from score_sde.networks import UNetSpec
from score_sde.networks.plan import plan

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
DTYPES = ("F32", "F64", "F16", "BF16")  # in the words of safetensors
MOST_LEVELS = 20  # beyond it no image can be halved as often

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

# The names inside a residual block and inside an attention. Attention has two generations.
RESIDUAL = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "embedding",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "shortcut",
}
ATTENTION = {
    "group_norm": "norm",
    **{"query": "query", "key": "key", "value": "value", "proj_attn": "output"},
    **{"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "output"},
}


def folder(source: Path) -> Path:
    """Return the network's folder: that of a pipeline is its `unet`, where it has one."""
    inner = source / "unet"
    return inner if inner.is_dir() else source


def scheduler_file(source: Path) -> Path | None:
    """Return the file of the scheduler that belongs to a network or a pipeline, None without."""
    network = folder(source).absolute()
    places = (network.parent / "scheduler", source / "scheduler", network, source)
    found = (place / scheduler.FILE for place in places)
    return next((path for path in found if path.is_file()), None)


def settings(source: Path, image_size: int) -> dict[str, Any]:
    """Return the settings of ours that a network's folder says, by their keys in a config.

    Args:
        source: the folder of a network or of a pipeline.
        image_size: of the network, if config.json does not say it; 0 for unknown.

    Raises:
        UserError: one line: a file that is missing or none, or a network or process that ours
            cannot be.
    """
    path = folder(source) / CONFIG
    found = read_json(path)
    if found.get("_class_name") != "UNet2DModel":
        raise UserError(f"{path} is not the config.json of a diffusers UNet2DModel")
    ours = architecture(found, str(path), image_size)
    process = scheduler_file(source)
    if process is not None:
        ours |= scheduler.settings(process)
        if (ours["sde.name"] == "ve") != (ours["model.embedding"] == "fourier"):
            raise UserError(
                f"{process}: allowed are {scheduler.VE} with time_embedding_type fourier in "
                f"{path}, the others with positional"
            )
    return ours


def read(source: Path, spec: UNetSpec) -> Foreign:
    """Return the parameters in a folder, under our names where they have one.

    Args:
        source: the folder of a network or of a pipeline.
        spec: our network of the folder's `settings`.

    Returns:
        one set of parameters, as `ema`, float32. An array without a place in our network keeps its
        name. The comparison with the network then lists it.

    Raises:
        UserError: a file that is missing or damaged.
    """
    where = folder(source)
    found = read_json(where / CONFIG)
    flipped = spec.embedding != "fourier" and _value(found, "flip_sin_to_cos")
    places = names(spec)
    params: dict[str, np.ndarray] = {}
    for name, array in _weights(where).items():
        module, _, leaf = name.rpartition(".")
        place = places.get(module)
        path = name
        if place and leaf in ("weight", "bias", "W"):
            path, array = _placed(place, leaf, array, spec.block == "ddpm")
            if flipped and path == "condition/dense0/kernel":
                # Theirs are the cosines before the sines.
                array = np.roll(array, len(array) // 2, axis=0)
        if path in params and not np.array_equal(params[path], array):
            path = name  # under both generations of names, and they differ: listed as surplus
        params[path] = array
    return Foreign(ema=params, params=None, mu=None, nu=None, step=0)


def _weights(where: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder: one file, or several that an index lists; of half precision where
    there is nothing else."""
    for variant in ("", ".fp16"):
        stem = WEIGHTS.removesuffix(".safetensors")
        single = where / f"{stem}{variant}.safetensors"
        if single.is_file():
            return tensors(single, DTYPES)[0]
        index = where / f"{WEIGHTS}.index{variant}.json"
        if index.is_file():
            files = read_json(index).get("weight_map")
            parts = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
            if not parts or any(Path(part).name != part for part in parts):
                raise UserError(f"{index}: allowed is a weight_map of names to files beside it")
            arrays: dict[str, np.ndarray] = {}
            for part in parts:
                arrays |= tensors(where / part, DTYPES)[0]
            return arrays
    raise UserError(
        f"{where / WEIGHTS} is missing; only safetensors are allowed: have diffusers load the "
        "model and save_pretrained it, which writes them"
    )


def _value(found: Mapping[str, Any], key: str) -> Any:
    return found.get(key, DEFAULTS[key])


def architecture(found: Mapping[str, Any], where: str, image_size: int) -> dict[str, Any]:
    """Return the settings of ours that describe a `UNet2DModel`, by their keys in a config.

    Args:
        found: the content of config.json.
        where: its path, for messages.
        image_size: of the network, if config.json does not say it; 0 for unknown.

    Raises:
        UserError: our network cannot be that one; all reasons in one line.
    """
    get = {key: _value(found, key) for key in DEFAULTS}
    kind, attends = _blocks(get, where)
    widths = get["block_out_channels"]
    counts = (*widths, get["layers_per_block"], get["in_channels"])
    if not all(type(value) is int and 0 < value < 2**31 for value in counts):
        raise UserError(f"{where}: widths, layers_per_block and in_channels are positive integers")
    allowed = _allowed(get, kind)
    wrong = [
        f"{key} is {get[key]!r} (ours: {' or '.join(map(repr, values))})"
        for key, values in allowed.items()
        if not any(_same(get[key], value) for value in values)
    ]
    if kind == SKIP and min(itertools.compress(widths, attends), default=128) < 128:
        wrong.append("attention at a width below 128 has 32 groups (ours: a quarter of the width)")
    eps, head = get["norm_eps"], get["attention_head_dim"]
    if type(eps) is not float or not 0 < eps < 1:
        wrong.append(f"norm_eps is {eps!r} (ours: numbers above 0 and below 1)")
    attended = {*itertools.compress(widths, attends), widths[-1]}  # the last is the middle's
    if head is not None and (type(head) is not int or head < 1 or any(w % head for w in attended)):
        wrong.append(f"attention_head_dim is {head!r} (ours: None or a divisor of {attended})")
    size = get["sample_size"]
    size = image_size if size is None else size[0] if isinstance(size, list) and size else size
    if type(size) is not int or get["sample_size"] not in (None, size, [size, size]):
        wrong.append(f"sample_size is {get['sample_size']!r} (ours: one integer)")
    elif size < 1:
        wrong.append("sample_size is None (ours: config.data.image_size then says it)")
    if any(width % widths[0] for width in widths):
        wrong.append(f"block_out_channels is {widths} (ours: multiples of the first)")
    if wrong:
        raise UserError(f"{where} is a network that ours cannot be: {', '.join(wrong)}")
    model = {
        **SETTINGS[kind],
        **({"norm_groups": get["norm_num_groups"]} if kind == PLAIN else {}),
        "name": "unet",
        "width": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": get["layers_per_block"],
        "attention_resolutions": tuple(
            size // 2**level for level, attention in enumerate(attends) if attention
        ),
        "head_width": 0 if head is None or attended == {head} else head,
        "symmetric_padding": kind == PLAIN and get["downsample_padding"] == 1,
        "norm_eps": eps,
        "activation": "swish",
        "conditional": True,
        "embedding": _embedding(get),
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


def _embedding(get: Mapping[str, Any]) -> str:
    """The embedding of the noise level, in our words."""
    if get["time_embedding_type"] == "fourier":
        return "fourier"
    return "positional" if get["freq_shift"] == 1 else "vaswani"


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


def names(spec: UNetSpec) -> dict[str, str]:
    """Return the path of ours for each module of the `UNet2DModel` with these settings.

    Both generations of attention names are in it.
    """
    places = {
        "time_proj": "condition",
        "time_embedding.linear_1": "condition/dense0",
        "time_embedding.linear_2": "condition/dense1",
        "class_embedding": "labels",
        "conv_in": "stem",
    }
    last = len(spec.multipliers) - 1
    # Residual blocks and attentions are numbered within their level.
    numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    for block in plan(spec):
        path, level = block.path, block.level
        at = {"encoder": f"down_blocks.{level}", "decoder": f"up_blocks.{last - level}"}
        where = at.get(path.partition("/")[0], "mid_block")
        inside: dict[str, str] = {}
        match block.kind:
            case "residual" if block.resample != "none":
                where, inside = f"{where}.resnet_{block.resample}", RESIDUAL
            case "residual":
                where, inside = f"{where}.resnets", RESIDUAL
                where = f"{where}.{next(numbers[where])}"
            case "attention":
                where, inside = f"{where}.attentions", ATTENTION
                where = f"{where}.{next(numbers[where])}"
            case "down" | "up":
                places[f"{where}.{block.kind}samplers.0.conv"] = f"{path}/conv"
            case "combine":
                places[f"{where}.skip_conv"] = f"{path}/conv"
            case "norm":
                places[f"{where}.skip_norm" if level else "conv_norm_out"] = path
            case "image" | "add_image":
                places[f"{where}.skip_conv" if level else "conv_out"] = path
        places |= {f"{where}.{module}": f"{path}/{ours}" for module, ours in inside.items()}
    return places


def _placed(place: str, leaf: str, array: np.ndarray, plain: bool) -> tuple[str, np.ndarray]:
    """An array of the module at our path `place`: its own path, and it in our layout."""
    last = place.rpartition("/")[2]
    if last == "condition":
        return f"{place}/frequencies", array
    if last == "labels":
        return f"{place}/table", array
    if leaf == "bias":
        return f"{place}/bias", array
    if array.ndim == 1:
        return f"{place}/scale", array
    dense = last in ("query", "key", "value", "output") or (last == "shortcut" and plain)
    if array.ndim == 4 and array.shape[2:] == (1, 1) and dense:
        array = array[:, :, 0, 0]
    order = (2, 3, 1, 0) if array.ndim == 4 else None
    return f"{place}/kernel", np.ascontiguousarray(array.transpose(order))
