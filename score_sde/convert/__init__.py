"""Checkpoints of other code bases in, ours out.

A source is known by its content:

    a folder with model.safetensors                  an export of ours
    another folder                                   a diffusers UNet2DModel, or its pipeline
    a zip                                            score_sde_pytorch (.pth)
    any other file                                   score_sde (Flax's msgpack)

Nothing in a source is ever executed.
"""

import zipfile
from pathlib import Path
from typing import Any

from score_sde.convert import (
    diffusers,
    exported,
    scheduler,
    score_sde_flax,
    score_sde_pytorch,
)
from score_sde.convert.fit import fit, flattened
from score_sde.convert.foreign import Foreign
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

__all__ = [
    "Foreign",
    "diffusers",
    "exported",
    "fit",
    "flattened",
    "read",
    "scheduler",
    "settings",
]


def settings(source: Path, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Return what a source that is no export says of its network and process, by the keys of a
    config: that of a folder of diffusers, nothing of a file.

    Args:
        source: the checkpoint.
        image_size: of the network, where the source does not say it; 0 for unknown.

    Raises:
        UserError: one line: a folder that is none, or a network or process that ours cannot be.
    """
    return diffusers.settings(source, image_size) if source.is_dir() else {}


def read(source: Path, spec: object) -> Foreign:
    """Read a checkpoint for the network of these settings. An export may be of any network; the
    others are of U-Nets.

    Raises:
        UserError: one line: a source that is missing, damaged, hostile or no checkpoint.
    """
    if (source / exported.FILE).is_file():
        return exported.read(source)
    if not isinstance(spec, UNetSpec):
        raise UserError(f"--source {source}: allowed are exports, as the config's is no U-Net")
    if source.is_dir():
        return diffusers.read(source, spec)
    if not source.is_file():  # a device or a pipe may have no end
        raise UserError(f"--source {source}: allowed are files and folders")
    if zipfile.is_zipfile(source):
        return score_sde_pytorch.read(source, spec)
    return score_sde_flax.read(source, spec)
