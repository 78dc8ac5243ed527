"""The content of a foreign checkpoint, in our names and layout."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from score_sde.errors import UserError, one_line


class Foreign(NamedTuple):
    """Flat trees, `encoder/level0_block0/conv0/kernel` to a float32 array; unchecked.

    Attributes:
        ema: averaged parameters, or the only ones.
        params: trained parameters, or None.
        mu, nu: Adam's first and second moments, or None.
        step: number of training steps taken; 0 where the checkpoint does not say it.
        adam_steps: number of Adam's updates, which its moments are of.
        sigmas: the noise levels that the checkpoint says it was trained on, ascending, or None.
        nameless: it has one set of weights (`ema`) and does not say whether they are averages.
        hint: for arrays that do not fit, returns the setting that is most likely another, or "".
    """

    ema: dict[str, np.ndarray]
    params: dict[str, np.ndarray] | None
    mu: dict[str, np.ndarray] | None
    nu: dict[str, np.ndarray] | None
    step: int
    adam_steps: int = 0
    sigmas: np.ndarray | None = None
    nameless: bool = False
    hint: Callable[[], str] = str


def whole_number(value: Any) -> int:
    """A count of steps, of Python, numpy or as an array; -1 for anything else."""
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return int(value) if type(value) in (int, float) and 0 <= value < 2**63 else -1


def get(mapping: Any, key: str) -> Any:
    """The value of a key of a foreign dict; None where either is missing."""
    return mapping.get(key) if isinstance(mapping, dict) else None


def _number(digits: str) -> int | float:
    """An integer of JSON. One that no float holds becomes inf, which every check refuses."""
    return int(digits) if len(digits) < 20 else float(digits)


def read_json(path: Path, most: int = 2**20) -> dict[str, Any]:
    """The object in a JSON file of up to so many bytes.

    Raises:
        UserError: one line: anything else, a pipe without an end too.
    """
    if not path.is_file():
        raise UserError(f"{path} cannot be read: it is missing, or no file")
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
        found = json.loads(text, parse_int=_number) if len(text) <= most else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: allowed are JSON objects of up to {most} bytes")
    return found


def tensors(path: Path, dtypes: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file as float32, and its metadata.

    Raises:
        UserError: a damaged file, or an array of another dtype, in the words of safetensors.
    """
    if not path.is_file():
        raise UserError(f"{path} cannot be read: it is missing, or no file")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():  # noqa: SIM118  (no mapping)
                dtype = file.get_slice(name).get_dtype()
                if dtype not in dtypes:
                    raise UserError(f"{path}: {name} is {dtype}; allowed are {', '.join(dtypes)}")
                arrays[name] = file.get_tensor(name).astype(np.float32, copy=False)
            return arrays, file.metadata() or {}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
