"""Reads the checkpoints of score_sde (Flax's msgpack of its `State`).

`params_ema` and `optimizer.target` are trees of parameters, `optimizer.state.param_states` has
Adam's moments (`grad_ema`, `grad_sq_ema`) in the place of each array. msgpack holds data only.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from score_sde.convert.foreign import Foreign, get, whole_number
from score_sde.convert.original import Array, arrays, likeliest, placed
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

MOST_LEVELS = 12  # of dicts in dicts; the moments' arrays are in the seventh
PLAIN = {"ResnetBlockDDPMpp": "ResnetBlockDDPM", "AttnBlockpp": "AttnBlock"}  # of class `ddpm`


def read(source: Path, spec: UNetSpec) -> Foreign:
    """Read a checkpoint.

    Args:
        source: the file.
        spec: of the network.

    Returns:
        the arrays under our names; those that are not the network's under their own.

    Raises:
        UserError: one line: a damaged or hostile file, or one of something else.
    """
    try:
        with source.open("rb") as file:
            if not _opens_a_map(file.read(1)):  # before all of a large file is read
                raise ValueError
        state = msgpack_restore(source.read_bytes())
    except OSError as error:
        raise UserError(f"--source {source}: {error.strerror or error}") from None
    except Exception:  # msgpack and numpy promise no list of what a foreign file raises
        raise UserError(
            f"--source {source}: damaged, cut short or of no known kind; allowed are .pth files of "
            "score_sde_pytorch, .pt files of OpenAI, Flax checkpoints of score_sde, and folders of "
            "diffusers or of --mode export"
        ) from None
    ema, optimizer = get(state, "params_ema"), get(state, "optimizer")
    target, adam = get(optimizer, "target"), get(optimizer, "state")
    trained = target if isinstance(target, dict) and target else None
    if not isinstance(ema, dict) or _deeper(state, MOST_LEVELS):
        raise UserError(
            f"--source {source}: not a checkpoint of score_sde; those have params_ema and optimizer"
        )
    known = list(arrays(spec))
    moments = get(adam, "param_states")
    have = isinstance(moments, dict) and bool(moments) and trained is not None
    return Foreign(
        ema=_ours(ema, known),
        params=None if trained is None else _ours(trained, known),
        mu=_ours(moments, known, "grad_ema") if have else None,
        nu=_ours(moments, known, "grad_sq_ema") if have else None,
        step=whole_number(get(state, "step")),
        adam_steps=whole_number(get(adam, "step")) if have else 0,
        hint=partial(likeliest, spec, partial(placed, _shapes(ema), "flax")),
    )


def _opens_a_map(byte: bytes) -> bool:
    """msgpack's first byte of a dict: of up to 15 items, of up to 2**16, of up to 2**32."""
    return b"\x80" <= byte <= b"\x8f" or byte in (b"\xde", b"\xdf")


def _deeper(tree: Any, levels: int) -> bool:
    """Whether there are more levels of dicts than that."""
    if not isinstance(tree, dict):
        return False
    return levels == 0 or any(_deeper(value, levels - 1) for value in tree.values())


def _leaves(tree: Any) -> dict[tuple[str, ...], np.ndarray]:
    """The arrays of nested dicts by their paths."""
    leaves = flatten_dict(tree) if isinstance(tree, dict) else {}
    return {
        tuple(map(str, path)): value
        for path, value in leaves.items()
        if isinstance(value, np.ndarray)
    }


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of the arrays by their paths, which are those of the networks with a "pp"."""
    pp = {plain: name for name, plain in PLAIN.items()}
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for (module, *inner), value in _leaves(tree).items():
        kind, _, number = module.rpartition("_")
        shapes[f"{pp.get(kind, kind)}_{number}", *inner] = value.shape
    return shapes


def _ours(tree: Any, known: list[Array], inside: str = "") -> dict[str, np.ndarray]:
    """Flax's arrays by our paths, in our shapes; unknown ones under their own names.

    Args:
        tree: nested dicts.
        known: the network's arrays.
        inside: the name of the array wanted where each has several.
    """
    flat = _leaves(tree)
    if inside:
        flat = {path[:-1]: value for path, value in flat.items() if path[-1] == inside}
    plain = any(path[0].startswith("AttnBlock_") for path in flat)
    places = {_flax_path(array, plain): array for array in known}
    result = {}
    for path, value in flat.items():
        array = places.get(path)
        if array is None:
            result["/".join(path)] = value
        elif array.path:
            # Flax 0.3 keeps the scale of a normalization as (1, 1, 1, C).
            row = array.layer == "norm" and value.shape[:-1] == (1, 1, 1)
            result[array.path] = value.reshape(-1) if row else value
    return result


def _flax_path(array: Array, plain: bool) -> tuple[str, ...]:
    module, *inner = array.flax
    kind, _, number = module.rpartition("_")
    return (f"{PLAIN.get(kind, kind)}_{number}" if plain else module, *inner)
