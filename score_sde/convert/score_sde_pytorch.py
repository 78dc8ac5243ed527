"""Reads the checkpoints of score_sde_pytorch (`.pth`).

A dict of `model` (names to tensors), `ema` (`shadow_params`, a list without names: the trained
parameters in the order in which the modules were made), `optimizer` (Adam's moments by the
parameter's number in that order, frozen ones counted) and `step`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.convert import torch_zip
from score_sde.convert.foreign import Foreign, get, whole_number
from score_sde.convert.original import Array, arrays
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

PREFIX = "module."  # of PyTorch's DataParallel
SIGMAS = "sigmas"


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
    return from_state(torch_zip.load(source), spec, source)


def from_state(state: Any, spec: UNetSpec, source: Path) -> Foreign:
    """As `read`, of what the file holds."""
    model, ema, optimizer, step = (get(state, key) for key in ("model", "ema", "optimizer", "step"))
    shadow = get(ema, "shadow_params")
    steps = whole_number(step)
    if not isinstance(model, dict) or not isinstance(shadow, list | tuple) or steps < 0:
        raise UserError(
            f"--source {source}: not a checkpoint of score_sde_pytorch; those are a dict of model, "
            "ema, optimizer and step"
        )
    known = list(arrays(spec))
    named = {str(name).removeprefix(PREFIX): value for name, value in model.items()}
    sigmas = named.pop(SIGMAS, None)
    params = _ours(named, known)
    trained = [array.torch for array in known if array.trained]
    averages = params
    shadow = [value for value in shadow if isinstance(value, np.ndarray)]
    if len(shadow) == len(trained):
        averages = params | _ours(dict(zip(trained, shadow, strict=True)), known)
    elif {name for name, value in named.items() if isinstance(value, np.ndarray)} == {
        array.torch for array in known
    }:
        raise UserError(
            f"--source {source}: its averages are {len(shadow)} arrays; allowed are those of its "
            f"{len(trained)} trained parameters"
        )
    # Otherwise it is another network, and its arrays are left to be listed by name.
    mu, nu, adam_steps = _moments(get(optimizer, "state"), known)
    return Foreign(
        ema=averages,
        params=params,
        mu=mu,
        nu=nu,
        step=steps,
        adam_steps=adam_steps,
        sigmas=np.sort(sigmas) if isinstance(sigmas, np.ndarray) and sigmas.ndim == 1 else None,
    )


def _ours(named: Mapping[str, Any], known: list[Array]) -> dict[str, np.ndarray]:
    """PyTorch's arrays by our paths, in our layout; unknown ones stay as they are."""
    places = {array.torch: array for array in known}
    result = {}
    for name, value in named.items():
        if not isinstance(value, np.ndarray):
            continue
        array = places.get(name)
        if array is None:
            result[name] = value
        elif array.path:
            result[array.path] = layout(value, array.layer)
    return result


def layout(value: np.ndarray, layer: str) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out); the others are alike."""
    if layer == "conv" and value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if layer == "dense" else value


def _moments(
    state: Any, known: list[Array]
) -> tuple[dict[str, np.ndarray] | None, dict[str, np.ndarray] | None, int]:
    """Adam's two moments and its number of updates, -1 for none that can be; None where there are
    no moments.

    A parameter without gradient, the frozen Fourier features, has no entry: its moments are 0.
    """
    if not isinstance(state, dict) or not state:
        return None, None, 0
    moments: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    steps = 0
    for number, array in enumerate(known):
        entry = state.get(number)
        for part, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            value = get(entry, name)
            if isinstance(value, np.ndarray) and array.path:
                part[array.path] = layout(value, array.layer)
        if entry is not None and steps >= 0:
            count = whole_number(get(entry, "step"))
            steps = max(steps, count) if count >= 0 else -1
    return (*moments, steps)
