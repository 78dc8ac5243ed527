"""The sets that an evaluation compares: drawn by a run, its training split, or a user's."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_sde import build, densities, evaluation, scoring, workdirs
from score_sde.config import changed
from score_sde.data import folder
from score_sde.data.info import DatasetInfo
from score_sde.display import eight_bits
from score_sde.errors import DAMAGED, UserError
from score_sde.evaluation import Rows, Statistics
from score_sde.evaluation.rows import ABOUT, chunk_of, of_npz, read_stored
from score_sde.modes import results, sample
from score_sde.run import Run, info_of
from score_sde.unread import unused

FEWEST = 20  # images of a side


class Side(NamedTuple):
    """One of the two sets that are compared.

    Attributes:
        about: what they are.
        images: uint8 (N, H, W, C) of 0 to 255; None for a file of statistics or of features.
        features: (N, F) of a folder; None for images, which have none yet.
        statistics: of the file; None for the others.
    """

    about: dict[str, Any]
    images: Rows | None = None
    features: Rows | None = None
    statistics: Statistics | None = None


def drawn(trained: Run, workdir: Path, output: Path) -> Side:
    """Samples of the run, drawn where they are missing. Their file is read later, too: the caller
    has the lock of samples."""
    number = trained.config.eval.num_samples
    wanted = changed(trained.config, {"sampling.num_samples": number, "sampling.gif": False})
    sample.draw(dataclasses.replace(trained, config=wanted), workdir, output)
    path = output / sample.VALUES
    with path.open("rb") as opened, np.load(opened) as file:
        averages = trained.config.sampling.average or "ema"
        about = sample.GUIDED | json.loads(str(file["depends"]))
        about |= {"n": number, "nfe": float(file["nfe"][:number].mean()), "averages": averages}
        about["made_by"] = json.loads(str(file["made_by"])) if "made_by" in file else []
        levels = _levels(file)
    first = of_npz(path, "images").at(np.arange(number))
    return Side(about, _in_eight_bits(first, levels, str(path)))


def keys_read(config: ConfigDict, info: DatasetInfo | None, reference: Path | str) -> set[str]:
    """The keys that an evaluation reads, given the other values: of samples of a run with these
    data, or without `info` of other images."""
    keys = {f"eval.{key}" for key in config.eval} - {"eval.training_samples", "eval.statistics"}
    keys -= unused(config)
    if reference:
        keys -= {"eval.num_reference"}
    if info is None:
        return keys - {"eval.num_samples", "eval.likelihood"}
    drawn = build.keys_read(config) | build.guidance_keys(config)
    keys |= {f"sampling.{key}" for key in drawn | {"method", "seed", "batch_size"}}
    if config.eval.likelihood:
        keys |= {f"likelihood.{key}" for key in densities.keys_read(config, info)}
    return keys


def check_room(config: ConfigDict, workdir: Path, output: Path) -> None:
    """Refuse samples for which the output has no room, before hours of work."""
    size = config.eval.num_samples * math.prod(info_of_images(config, workdir).shape)
    results.check_room(output / sample.VALUES, size)


def training_split(config: ConfigDict, workdir: Path) -> Side:
    """The images of the run's training split, `eval.num_reference` of them."""
    info = info_of_images(config, workdir)
    images = scoring.training_split(config, info, build.arrays(config, info, "train").x)
    if len(images) < FEWEST:
        raise UserError(
            f"config.data.name: {info.name} has {len(images)} training images; allowed are "
            f"{FEWEST} or more"
        )
    return Side({"set": info.name, "split": "train", "n": len(images)}, images)


def info_of_images(config: ConfigDict, workdir: Path) -> DatasetInfo:
    """What is known of the run's data, which must be images."""
    # Anybody's images are compared in any folder, where a config.json may be of another program.
    kept = workdirs.load_info(workdir) if workdirs.is_run(workdir) else None
    info = info_of(config, kept)
    if info.levels is None:
        raise UserError(f"config.data.name = {config.data.name!r}: allowed are sets of images")
    return info


def named(path: Path) -> Side:
    """Images, features or statistics that a user names.

    Raises:
        UserError: one line: anything else.
    """
    about: dict[str, Any] = {"path": str(path)}
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and (path / ABOUT).is_file():
        found, said = read_stored(path)
        return Side(about | said, features=found)
    if workdirs.is_run(path):
        raise UserError(f"{path}: a run; allowed are files of results, such as its {sample.VALUES}")
    if path.is_dir():
        shape, read = folder.of_one_size(path)
        if not shape[0]:
            raise UserError(f"{path}: no images in the folder itself; allowed are {FEWEST} or more")
        images = _unchanged(Rows(shape, lambda: read(chunk_of(shape))), path)
        return _of_images(images, about)
    try:
        with np.load(path, allow_pickle=False) as file:
            if "mu" in file.files:
                known = evaluation.read_statistics(path)
                return Side({**about, "n": known.n, **known.about}, statistics=known)
            name = next(name for name in ("images", "arr_0") if name in file.files)
            levels = _levels(file)
        images = of_npz(path, name)
        dtype = next(iter(images)).dtype if len(images) else np.dtype(np.uint8)
    except (*DAMAGED, StopIteration) as error:
        raise UserError(
            f"{path}: allowed are a folder of images, .npz of images, or of mu and sigma"
        ) from error
    is_images = len(images.shape) == 4 and images.shape[-1] in (1, 3) and 0 not in images.shape[1:]
    if dtype != np.uint8 or not is_images:
        raise UserError(
            f"{path}: {name} is {dtype}{images.shape}; allowed is uint8 (N, H, W, 1 or 3)"
        )
    images = _in_eight_bits(_unchanged(images, path), levels, f"{path}: {name}")
    return _of_images(images, about)


def _in_eight_bits(images: Rows, levels: int, where: str) -> Rows:
    """Images of 0 to levels - 1 as those of 0 to 255; reading others raises UserError."""

    def read() -> Iterator[np.ndarray]:
        for chunk in images:
            if chunk.max() >= levels:
                raise UserError(f"{where} has {chunk.max()}; allowed are 0 to {levels - 1}")
            yield eight_bits(chunk, levels)

    return Rows(images.shape, read)


def _unchanged(images: Rows, path: Path) -> Rows:
    """The images; reading them after a change of their files raises UserError."""
    before = _stamps(path)

    def check() -> None:
        if _stamps(path) != before:
            raise UserError(
                f"{path}: another command has changed it since it was read first; allowed is the "
                "same command when that has ended"
            )

    def read() -> Iterator[np.ndarray]:
        check()
        yield from images
        check()

    return Rows(images.shape, read)


def _stamps(path: Path) -> list[tuple[str, int, int, int]]:
    """What shows that files are the same: name, inode, size and time of change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.exists()]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _of_images(images: Rows, about: dict[str, Any]) -> Side:
    if len(images) < FEWEST:
        raise UserError(f"{about['path']}: {len(images)} images; allowed are {FEWEST} or more")
    return Side(about | {"n": len(images)}, images)


def _levels(file: Any) -> int:
    """Levels of the images in a file of `--mode sample`; older versions said it in words only.
    ValueError for others than 2 to 256."""
    said = re.match(r"images x 255/(\d+)", str(file["arr_0_is"])) if "arr_0_is" in file else None
    levels = int(file["levels"]) if "levels" in file else int(said[1]) + 1 if said else 256
    if not 2 <= levels <= 256:
        raise ValueError(f"levels = {levels}")
    return levels
