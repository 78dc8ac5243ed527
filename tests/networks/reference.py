"""The recorded networks of the original code bases, as networks of ours.

`load(directory, name)` reads NAME.pth or NAME.flax. Their modules stand in one order (a list in
PyTorch, a counter per class in Flax), which `module_order` repeats for our names.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore
from numpy._core.multiarray import scalar as numpy_scalar

from score_sde.networks import Apply, UNet, abstract

Tree = dict[str, Any]

RESIDUAL, ATTENTION = "ResnetBlockBigGANpp", "AttnBlockpp"
# What the plain `ddpm` class does not name in its configuration, and what it names but ignores.
PLAIN = {"embedding_type": "positional", "skip_rescale": False, "fir": False}
SUBMODULES = {
    RESIDUAL: {
        "GroupNorm_0": "norm0",
        "Conv_0": "conv0",
        "Dense_0": "embedding",
        "GroupNorm_1": "norm1",
        "Conv_1": "conv1",
        "Conv_2": "shortcut",
    },
    ATTENTION: {
        "GroupNorm_0": "norm",
        "NIN_0": "query",
        "NIN_1": "key",
        "NIN_2": "value",
        "NIN_3": "output",
    },
    "Downsample": {"Conv2d_0": "conv", "Conv_0": "conv"},
    "Upsample": {"Conv_0": "conv"},
}
SUBMODULES["ResnetBlockDDPM"] = {**SUBMODULES[RESIDUAL], "NIN_0": "shortcut"}


@dataclass(frozen=True)
class Reference:
    """A recorded network.

    `apply` is ours, `params` and `raw_params` are the averaged and the trained parameters,
    `config` is the original's configuration and `arrays` holds what was recorded.
    """

    apply: Apply
    params: Tree
    raw_params: Tree
    config: Tree
    arrays: dict[str, np.ndarray]


def load(directory: Path, name: str, dtype: Any = jnp.float32) -> Reference:
    """The network NAME, computing in `dtype`; its parameters are float32 numpy arrays."""
    info = json.loads((directory / f"{name}.json").read_text())
    model, data = info["config"]["model"], info["config"]["data"]
    plain = model["name"] == "ddpm"
    if plain:
        model = {**model, **PLAIN, "progressive_input": "none"}
    make = partial(
        UNet,
        image_size=data["image_size"],
        channels=data["num_channels"],
        width=model["nf"],
        multipliers=model["ch_mult"],
        num_blocks=model["num_res_blocks"],
        attention_resolutions=model["attn_resolutions"],
        dropout=model["dropout"],
        embedding=model["embedding_type"],
        skip_rescale=model["skip_rescale"],
        fir=model["fir"],
        progressive_input=model["progressive_input"],
        centered=data["centered"],
        block="ddpm" if plain else "biggan",
        norm_groups=32 if plain else 0,
        dtype=dtype,
    )
    apply, expected = abstract(make)
    order = list(module_order(model, data["image_size"]))
    if (directory / f"{name}.flax").exists():
        state = msgpack_restore((directory / f"{name}.flax").read_bytes())
        params = from_flax(state["params_ema"], order)
        raw_params = from_flax(state["optimizer"]["target"], order)
    else:
        state = read_pth(directory / f"{name}.pth")
        raw = {key: value for key, value in state["model"].items() if key != "module.sigmas"}
        shadow = dict(zip(info["trainable_order"], state["ema"]["shadow_params"], strict=True))
        params, raw_params = from_torch({**raw, **shadow}, order), from_torch(raw, order)
    for tree in (params, raw_params):
        assert shapes(tree) == shapes(expected)
    with np.load(directory / f"{name}.npz") as arrays:
        return Reference(apply, params, raw_params, info["config"], dict(arrays))


def shapes(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def module_order(model: Tree, image_size: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(class name of the original, path of ours) in the original's order."""
    plain = model["name"] == "ddpm"
    residual = "ResnetBlockDDPM" if plain else RESIDUAL
    down, up = ("Downsample", "Upsample") if plain else (RESIDUAL, RESIDUAL)
    if model["embedding_type"] == "fourier":
        yield "GaussianFourierProjection", ("condition",)
    yield "Dense", ("condition", "dense0")
    yield "Dense", ("condition", "dense1")
    yield "Conv", ("stem",)
    levels = len(model["ch_mult"])
    attends = [image_size // 2**level in model["attn_resolutions"] for level in range(levels)]
    for level in range(levels):
        for index in range(model["num_res_blocks"]):
            yield residual, ("encoder", f"level{level}_block{index}")
            if attends[level]:
                yield ATTENTION, ("encoder", f"level{level}_attention{index}")
        if level < levels - 1:
            yield down, ("encoder", f"level{level}_down")
            if model["progressive_input"] == "residual":
                yield "Downsample", ("encoder", f"level{level}_input")
    yield residual, ("middle", "block0")
    yield ATTENTION, ("middle", "attention")
    yield residual, ("middle", "block1")
    for level in reversed(range(levels)):
        for index in range(model["num_res_blocks"] + 1):
            yield residual, ("decoder", f"level{level}_block{index}")
        if attends[level]:
            yield ATTENTION, ("decoder", f"level{level}_attention")
        if level > 0:
            yield up, ("decoder", f"level{level}_up")
    yield "GroupNorm", ("head_norm",)
    yield "Conv", ("head",)


def from_flax(tree: Tree, order: list[tuple[str, tuple[str, ...]]]) -> Tree:
    counters: dict[str, int] = defaultdict(int)
    result: Tree = {}
    for kind, path in order:
        module = tree[f"{kind}_{counters[kind]}"]
        counters[kind] += 1
        for submodule, leaves in _by_submodule(module).items():
            for name, value in leaves.items():
                if name == "scale" or (name == "bias" and value.ndim == 4):
                    value = value.reshape(-1)
                _put(result, (*path, *_inner(kind, submodule)), _leaf_name(name, value), value)
    return result


def from_torch(tensors: Tree, order: list[tuple[str, tuple[str, ...]]]) -> Tree:
    modules: dict[int, Tree] = defaultdict(dict)
    for key, value in tensors.items():
        number, _, rest = key.removeprefix("module.all_modules.").partition(".")
        modules[int(number)][rest] = value
    result: Tree = {}
    for number, (kind, path) in enumerate(order):
        for key, value in modules[number].items():
            submodule, _, name = key.rpartition(".")
            if name == "weight" and value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)
            elif name == "weight" and value.ndim == 2:
                value = value.T
            _put(result, (*path, *_inner(kind, submodule)), _leaf_name(name, value), value)
    return result


def _by_submodule(module: Tree) -> dict[str, Tree]:
    if all(isinstance(value, dict) for value in module.values()):
        return module
    return {"": module}


def _inner(kind: str, submodule: str) -> tuple[str, ...]:
    return (SUBMODULES[kind][submodule],) if submodule else ()


def _leaf_name(name: str, value: np.ndarray) -> str:
    if name == "weight":
        return "scale" if value.ndim == 1 else "kernel"
    if name == "W":
        return "frequencies" if value.ndim == 1 else "kernel"
    return {"b": "bias"}.get(name, name)


def _put(tree: Tree, path: tuple[str, ...], name: str, value: np.ndarray) -> None:
    for step in path:
        tree = tree.setdefault(step, {})
    tree[name] = np.ascontiguousarray(value)


def read_pth(path: Path) -> Tree:
    """A checkpoint of PyTorch without PyTorch: a zip of a pickle and of the tensors' bytes."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        unpickler = _Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl")))
        unpickler.storage = lambda key: archive.read(f"{root}/data/{key}")
        return unpickler.load()


class _Unpickler(pickle.Unpickler):
    """Makes numpy arrays of tensors, and refuses every class that such a file does not need."""

    def find_class(self, module: str, name: str) -> Any:
        return {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch.FloatStorage": np.float32,
            "torch.DoubleStorage": np.float64,
            "torch.LongStorage": np.int64,
            "numpy._core.multiarray.scalar": numpy_scalar,
            "numpy.dtype": np.dtype,
            "_codecs.encode": lambda text, encoding: text.encode(encoding),
        }[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, *_ = pid
        return np.frombuffer(self.storage(key), dtype)


def _rebuild(storage: np.ndarray, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()
