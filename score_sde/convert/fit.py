"""Whether the arrays of a foreign checkpoint are those of the network that the config asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from score_sde.errors import UserError

Tree = dict[str, Any]
MOST_NAMES = 5  # of each of the four kinds: a wrong config has hundreds


def fit(
    flat: Mapping[str, np.ndarray],
    expected: Tree,
    source: object,
    what: str = "arrays",
    hint: Callable[[], str] = str,
) -> Tree:
    """The arrays as the network's tree of parameters.

    Args:
        flat: arrays by path, `stem/kernel`.
        expected: the network's parameters, or their `jax.ShapeDtypeStruct`s.
        source: the checkpoint, for the message.
        what: the arrays' name in the message.
        hint: returns the setting that most likely is another, for the message, or "".

    Returns:
        a nested dict of float32 numpy arrays.

    Raises:
        UserError: arrays that are missing, not the network's, of another shape, or no finite
            numbers, the first of each kind.
    """
    wanted = {name: leaf.shape for name, leaf in flatten_dict(expected, sep="/").items()}
    misshaped = [
        f"{name} {flat[name].shape} for {shape}"
        for name, shape in wanted.items()
        if name in flat and flat[name].shape != shape
    ]
    found = {
        "missing": [name for name in wanted if name not in flat],
        "not the network's": [name for name in flat if name not in wanted],
        "of another shape": misshaped,
        "not finite numbers": [name for name in wanted if name in flat and not _finite(flat[name])],
    }
    reasons = [f"{len(all_)} {kind}: {_shortened(all_)}" for kind, all_ in found.items() if all_]
    if reasons:
        likely = hint()
        raise UserError(
            f"--source {source}: its {what} do not fit the config"
            f"{f', most likely {likely}' if likely else ''}; {'; '.join(reasons)}. "
            "Allowed are checkpoints of the network that config.model asks for",
        )
    arrays = {name: np.asarray(flat[name], np.float32, order="C") for name in wanted}
    tree: Tree = unflatten_dict(arrays, sep="/")
    return tree


def flattened(tree: Tree) -> dict[str, np.ndarray]:
    """A tree of parameters by path, the inverse of `fit`."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def _finite(array: np.ndarray) -> bool:
    """Whether they are real numbers that float32 has. bfloat16's kind is that of records."""
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32)).all())


def _shortened(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
