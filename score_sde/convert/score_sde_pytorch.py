"""Reads the checkpoints of score_sde_pytorch (`.pth`).

A dict of `model` (names to tensors), `ema` (`shadow_params`, a list without names: the trained
parameters in the order in which the modules were made), `optimizer` (Adam's moments by the
parameter's number in that order, frozen ones counted) and `step`. In files that others made of it
`ema` may be a dict of names, too. A file of weights alone is such a dict, or has it as
`state_dict`, `model` or `ema`.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.convert.foreign import Foreign, get, whole_number
from score_sde.convert.original import Array, arrays, likeliest, placed
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

PREFIX = re.compile(r"((module|_orig_mod)\.)*")  # of DataParallel and torch.compile
SIGMAS = "sigmas"


def from_state(state: Any, spec: UNetSpec, source: Path) -> Foreign:
    """Read a checkpoint.

    Args:
        state: what the file holds, see `torch_zip.load`.
        spec: of the network.
        source: the file, for messages.

    Returns:
        the arrays under our names; those that are not the network's under their own.

    Raises:
        UserError: one line: the file holds something else.
    """
    known = list(arrays(spec))
    model, ema, optimizer, step = (get(state, key) for key in ("model", "ema", "optimizer", "step"))
    averaged = _named(ema)
    if not isinstance(model, dict) or not (averaged or get(ema, "shadow_params") is not None):
        alone = averaged or _named(model) or _named(get(state, "state_dict")) or _named(state)
        if not alone:
            raise UserError(
                f"--source {source}: not a checkpoint of score_sde_pytorch; those are a dict of "
                "model, ema, optimizer and step, or of the weights alone"
            )
        sigmas = _sigmas(alone, source)
        hint = partial(likeliest, spec, partial(placed, _shapes(alone), "torch"))
        weights = _ours(alone, known)
        return Foreign(weights, None, None, None, 0, sigmas=sigmas, nameless=True, hint=hint)
    steps = whole_number(step)
    if steps < 0:
        raise UserError(f"--source {source}: its step is {step!r:.40}; allowed are whole numbers")
    named = _named(model)
    sigmas = _sigmas(named, source)
    params = _ours(named, known)
    if averaged:
        _sigmas(averaged, source)
    else:
        averaged = _in_order(get(ema, "shadow_params"), named, known, source)
    mu, nu, adam_steps = _moments(get(optimizer, "state"), known)
    return Foreign(
        ema=params | _ours(averaged, known),
        params=params,
        mu=mu,
        nu=nu,
        step=steps,
        adam_steps=adam_steps,
        sigmas=sigmas,
        hint=partial(likeliest, spec, partial(placed, _shapes(named), "torch")),
    )


def _named(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a dict of names, without the prefixes of wrappers; {} for anything else."""
    items = state.items() if isinstance(state, dict) else ()
    return {
        PREFIX.sub("", name, count=1): value
        for name, value in items
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }


def _shapes(named: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in named.items()}


def _sigmas(named: dict[str, np.ndarray], source: Path) -> np.ndarray | None:
    """Take the noise levels out of a model's arrays: ascending, None where there are none.

    Raises:
        UserError: they are no levels.
    """
    sigmas = named.pop(SIGMAS, None)
    if sigmas is None:
        return None
    ok = sigmas.ndim == 1 and len(sigmas) > 0 and sigmas.dtype.kind == "f"
    if not ok or not (np.isfinite(sigmas).all() and (sigmas > 0).all()):
        raise UserError(
            f"--source {source}: sigmas is {sigmas.dtype} {sigmas.shape}; allowed is one row of "
            "positive numbers, the levels that the network was trained on"
        )
    return np.sort(sigmas)


def _in_order(
    shadow: Any, named: Mapping[str, np.ndarray], known: list[Array], source: Path
) -> dict[str, np.ndarray]:
    """The averages, which have no names, under those of the trained parameters."""
    trained = [array.torch for array in known if array.trained]
    listed = shadow if isinstance(shadow, list | tuple) else []
    averages = [value for value in listed if isinstance(value, np.ndarray)]
    if len(averages) == len(trained):
        return dict(zip(trained, averages, strict=True))
    if named.keys() == {array.torch for array in known}:
        raise UserError(
            f"--source {source}: its averages are {len(averages)} arrays; allowed are those of its "
            f"{len(trained)} trained parameters"
        )
    return {}  # it is another network, and its arrays are left to be listed by name


def _ours(named: Mapping[str, np.ndarray], known: list[Array]) -> dict[str, np.ndarray]:
    """PyTorch's arrays by our paths, in our layout; unknown ones stay as they are."""
    places = {array.torch: array for array in known}
    result = {}
    for name, value in named.items():
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
