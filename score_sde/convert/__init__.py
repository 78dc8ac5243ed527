"""Checkpoints of other code bases in, ours out.

A source is known by its content:

    a folder with model.safetensors                  an export of ours
    another folder                                   a diffusers UNet2DModel
    a zip                                            score_sde_pytorch (.pth)
    any other file                                   score_sde (Flax's msgpack)

Nothing in a source is ever executed.
"""

import zipfile
from pathlib import Path

from score_sde.convert import diffusers, exported, score_sde_flax, score_sde_pytorch
from score_sde.convert.fit import fit, flattened
from score_sde.convert.foreign import Foreign
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

__all__ = ["Foreign", "exported", "fit", "flattened", "read"]


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
