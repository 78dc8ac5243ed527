"""The averaged weights of a run as a safetensors file, and back.

The file's arrays are named by their place in the network, `encoder/level0_block0/conv0/kernel`;
its metadata has the training step. The config lies beside it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from score_sde.convert.foreign import Foreign, tensors
from score_sde.errors import UserError
from score_sde.paths import whole

FILE = "model.safetensors"


def write(folder: Path, params: Mapping[str, np.ndarray], step: int) -> Path:
    """Write the arrays, float32 by path, into a folder; return the file's path.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    path = folder / FILE
    with whole(path) as file:
        file.write(save(dict(params), metadata={"step": str(step)}))
    return path


def read(source: Path) -> Foreign:
    """Read what `write` wrote. Any network's: the names are ours.

    Raises:
        UserError: one line: a damaged file, or one of other numbers than float32.
    """
    path = source / FILE
    try:
        arrays, metadata = tensors(path, ("F32",))
    except UserError as error:
        raise UserError(f"--source {error}") from None
    step = metadata.get("step", "0")
    if not step.isdecimal() or len(step) > 9:
        raise UserError(f"--source {path}: step is {step!r}; allowed are whole numbers")
    return Foreign(ema=arrays, params=None, mu=None, nu=None, step=int(step))
