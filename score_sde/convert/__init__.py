"""Checkpoints of other code bases in, ours out.

A source is known by its content:

    a folder with model.safetensors                  an export of ours
    another folder                                   a diffusers UNet2DModel, or its pipeline
    a file of torch.save                             OpenAI's (.pt), by its names, or
                                                     score_sde_pytorch (.pth)
    any other file                                   score_sde (Flax's msgpack)

Nothing in a source is ever executed.
"""

from pathlib import Path
from typing import Any

from score_sde.convert import (
    diffusers,
    exported,
    openai,
    scheduler,
    score_sde_flax,
    score_sde_pytorch,
    torch_zip,
)
from score_sde.convert.fit import fit, flattened
from score_sde.convert.foreign import Foreign
from score_sde.errors import UserError
from score_sde.networks import UNetSpec

__all__ = [
    "Foreign",
    "choices",
    "diffusers",
    "exported",
    "fit",
    "flattened",
    "likely",
    "read",
    "scheduler",
    "settings",
]


def settings(source: Path, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Return what a source that is no export says of its network and process, by the keys of a
    config: that of a folder of diffusers or of a file of OpenAI's, nothing of another file.

    Args:
        source: the checkpoint.
        image_size: of the network, where the source does not say it; 0 for unknown.

    Raises:
        UserError: one line: a folder that is none, or a network or process that ours cannot be.
    """
    if source.is_dir():
        return diffusers.settings(source, image_size)
    shapes = _shapes(source)
    return openai.settings(source, shapes, image_size) if openai.is_one(shapes) else {}


def likely(source: Path, num_levels: int) -> dict[str, Any]:
    """Return the settings that a source does not say and most likely has, by the keys of a config:
    of a file of OpenAI's what its code has by default, nothing of another source.

    Args:
        source: the checkpoint.
        num_levels: of its chain, where it is known; 0 for unknown.
    """
    shapes = _shapes(source)
    return openai.likely(source, shapes, num_levels) if openai.is_one(shapes) else {}


def choices(source: Path, num_levels: int) -> dict[str, tuple[Any, Any]]:
    """Return the settings that a source does not say and that have one of two values, by the keys
    of a config: see `openai.choices`; nothing of another source."""
    return openai.choices(source, num_levels) if openai.is_one(_shapes(source)) else {}


def _shapes(source: Path) -> dict[str, tuple[int, ...]]:
    return torch_zip.shapes(source) if torch_zip.is_one(source) else {}


def read(source: Path, spec: object, new_attention_order: bool = False) -> Foreign:
    """Read a checkpoint for the network of these settings. An export may be of any network; the
    others are of U-Nets.

    Args:
        source: the checkpoint.
        spec: of the network.
        new_attention_order: of a file of OpenAI's, see `openai.from_state`; a published one's is
            known.

    Raises:
        UserError: one line: a source that is missing, damaged, hostile or no checkpoint.
    """
    if new_attention_order and not openai.is_one(_shapes(source)):
        raise UserError(f"--new_attention_order: {source} is no checkpoint of OpenAI's")
    if (source / exported.FILE).is_file():
        return exported.read(source)
    if not isinstance(spec, UNetSpec):
        raise UserError(f"--source {source}: allowed are exports, as the config's is no U-Net")
    if source.is_dir():
        return diffusers.read(source, spec)
    if not source.is_file():  # a device or a pipe may have no end
        raise UserError(f"--source {source}: allowed are files and folders")
    if torch_zip.is_one(source):
        state = torch_zip.load(source)
        if openai.is_one(state):
            new = new_attention_order or openai.has_new_order(source)
            return openai.from_state(state, spec, new)
        return score_sde_pytorch.from_state(state, spec, source)
    return score_sde_flax.read(source, spec)
