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
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.convert import scheduler
from score_sde.convert.foreign import Foreign, read_json, tensors
from score_sde.convert.original import likeliest
from score_sde.convert.unet2d import architecture, value
from score_sde.errors import UserError
from score_sde.networks import UNetSpec
from score_sde.networks.plan import plan

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
DTYPES = ("F32", "F64", "F16", "BF16")  # in the words of safetensors

# The keys of config.json that say settings of ours which the arrays show.
KEYS = {
    "num_blocks": "layers_per_block",
    "block": "down_block_types, up_block_types",
    "attention_resolutions": "down_block_types, up_block_types",
    "embedding": "time_embedding_type",
    "width": "block_out_channels",
    "multipliers": "block_out_channels",
    "channels": "in_channels, out_channels",
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
    network = folder(source)
    beside = Path(os.path.normpath(network / ".."))
    places = (source / "scheduler", beside / "scheduler", network, source)
    found = (place / scheduler.FILE for place in places)
    return next((path for path in found if path.is_file()), None)


def settings(source: Path, image_size: int | tuple[int, int]) -> dict[str, Any]:
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
        if ("sde.sigma_max" in ours) != (ours["model.embedding"] == "fourier"):
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
    found, arrays = read_json(where / CONFIG), _weights(where)
    flipped = spec.embedding != "fourier" and value(found, "flip_sin_to_cos")
    places, plain = names(spec), spec.block == "ddpm"
    params: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        path, array = our_array(name, array, places, plain=plain, flipped=flipped)
        if path in params and not np.array_equal(params[path], array):
            path = name  # under both generations of names, and they differ: listed as surplus
        params[path] = array
    shapes = {name: array.shape for name, array in arrays.items()}
    hint = partial(_hint, spec, shapes)
    return Foreign(ema=params, params=None, mu=None, nu=None, step=0, hint=hint)


def _hint(spec: UNetSpec, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`Foreign.hint`, with the key of config.json that says it."""

    def placed(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
        places = names(spec)
        return {path_of(name, len(shape), places): shape for name, shape in shapes.items()}

    found = likeliest(spec, placed)
    key = found.partition(" = ")[0].rpartition(".")[2]
    return f"{found} ({KEYS[key]} in {CONFIG})" if key in KEYS else found


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


def path_of(name: str, ndim: int, places: Mapping[str, str]) -> str:
    """Our path of an array; its own name where it has none."""
    module, _, leaf = name.rpartition(".")
    place = places.get(module)
    if not place or leaf not in ("weight", "bias", "W"):
        return name
    last = place.rpartition("/")[2]
    ours = "bias" if leaf == "bias" else "scale" if ndim == 1 else "kernel"
    return f"{place}/{ {'condition': 'frequencies', 'labels': 'table'}.get(last, ours) }"


def our_array(
    name: str, array: np.ndarray, places: Mapping[str, str], *, plain: bool, flipped: bool
) -> tuple[str, np.ndarray]:
    """An array's path and layout in our network; both as they are where it has no place.

    Args:
        name: of the array.
        array: as it is stored.
        places: our paths of modules by their names.
        plain: our shortcuts are dense layers.
        flipped: the embedding has the cosines before the sines.
    """
    path = path_of(name, array.ndim, places)
    if path == name:
        return name, array
    array = _layout(path, array, plain)
    if flipped and path == "condition/dense0/kernel":
        array = np.roll(array, len(array) // 2, axis=0)
    return path, array


def _layout(path: str, array: np.ndarray, plain: bool) -> np.ndarray:
    """The array of a path in our layout."""
    *_, last, leaf = path.split("/")
    if leaf != "kernel":
        return array
    dense = last in ("query", "key", "value", "output") or (last == "shortcut" and plain)
    if array.ndim == 4 and array.shape[2:] == (1, 1) and dense:
        array = array[:, :, 0, 0]
    order = (2, 3, 1, 0) if array.ndim == 4 else None
    return np.ascontiguousarray(array.transpose(order))
