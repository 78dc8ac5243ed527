"""`--mode evaluate`: figures of sample quality, with everything that they depend on."""

import json
import platform
import re
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde import __version__, build, evaluation, pictures, workdirs
from score_sde.config import changed
from score_sde.data import folder
from score_sde.data.info import DatasetInfo
from score_sde.display import eight_bits
from score_sde.errors import UserError, one_line
from score_sde.evaluation import Statistics, weights
from score_sde.evaluation.network import FEATURES
from score_sde.locks import writing
from score_sde.modes import sample, start
from score_sde.modes.files import digest
from score_sde.modes.results import Table, progress, saving
from score_sde.paths import whole
from score_sde.run import info_of

SUMMARY, OURS, THEIRS = "evaluation.json", "evaluation.npz", "evaluation_reference.npz"
NEIGHBOURS = "nearest.png"
FULL = 50_000  # samples of a FID without a number in its name
FEWEST = 20  # images of a side
CHUNK = 16  # batches between savings
SHOWN, NEAREST = 10, 5
UNREADABLE = (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error)  # of np.load


class Side(NamedTuple):
    """One of the two sets that are compared.

    Attributes:
        images: uint8 (N, H, W, C) of 0 to 255; None for a file of statistics.
        statistics: of the file; None for images.
        about: what they are.
    """

    images: np.ndarray | None
    statistics: Statistics | None
    about: dict[str, Any]


def run(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    step: int | None,
    samples: Path | str,
    reference: Path | str,
) -> None:
    """Write `evaluation.json` into the output, and print it; `nearest.png` has samples and the
    reference images that are nearest to them.

    The samples are drawn as `--mode sample` draws them, into `samples.npz`, unless `samples` names
    other images. The reference is the training split unless `reference` names images or statistics.
    The features of both are kept (`evaluation.npz`, `evaluation_reference.npz`), so the same
    command continues after an interruption.
    """
    settings = config.eval
    arrays = weights.read(settings.inception_weights)
    made = {"features": "inception-2015", "weights": weights.digest(arrays)}
    made["resize"] = settings.resize
    theirs = _side(Path(reference)) if reference else _training_split(config, workdir)
    if theirs.statistics:
        _check(theirs.statistics, made, Path(reference))
    if samples:
        ours = _side(Path(samples))
        start(settings.batch_size)
    else:
        ours = _drawn(config, workdir, output, step)
    if ours.images is None:
        raise UserError(f"--samples = '{samples}': statistics; allowed are images")
    try:
        function = evaluation.inception(arrays, settings.resize)
    except ValueError as error:
        raise UserError(f"config.eval.inception_weights: {one_line(error)}") from error
    beside = (SUMMARY, NEIGHBOURS)  # what is made of these features
    x = _features(function, ours.images, output / OURS, made, settings.batch_size, beside)
    y = None
    if theirs.images is not None:
        y = _features(function, theirs.images, output / THEIRS, made, settings.batch_size)
    figures = _figures(x, y, theirs.statistics)
    if theirs.images is not None and ours.images.shape[1:] == theirs.images.shape[1:]:
        both = ours.images, theirs.images
        figures["sliced_wasserstein"] = evaluation.sliced_wasserstein(*both)
        _show_nearest(*both, output / NEIGHBOURS)
    else:  # one of an earlier command would be of other images
        (output / NEIGHBOURS).unlink(missing_ok=True)
    facts = {"figures": figures, "samples": ours.about, "reference": theirs.about, **made}
    with whole(output / SUMMARY) as file:
        file.write(f"{json.dumps(facts | _circumstances(), indent=2)}\n".encode())
    print(json.dumps(figures, indent=2))
    print(f"result: {output / SUMMARY}")


def _circumstances() -> dict[str, Any]:
    versions = {
        "score_sde": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return {
        "rounding": "samples are rounded to uint8",
        "precision": "features float32 at full precision, distances float64",
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "command": sys.argv,
    }


# --- The two sides --------------------------------------------------------------------------------


def _drawn(config: ConfigDict, workdir: Path, output: Path, step: int | None) -> Side:
    """Samples of the run, drawn where they are missing."""
    _info(config, workdir)
    number = config.eval.num_samples
    drawn = changed(config, {"sampling.num_samples": number, "sampling.gif": False})
    with writing(output, "samples"):
        sample.run(drawn, workdir, output, step)
    with (output / sample.VALUES).open("rb") as opened, np.load(opened) as file:
        images, levels = file["images"][:number], _levels(file)
        about = {key: file[key].item() for key in ("seed", "sampler", "step")}
        about |= {"n": len(images), "nfe": float(file["nfe"][:number].mean())}
        about["weights"] = json.loads(str(file["depends"]))["weights"]
    return Side(eight_bits(images, levels), None, about)


def _training_split(config: ConfigDict, workdir: Path) -> Side:
    info = _info(config, workdir)
    images = build.arrays(config, info, "train").x
    number = config.eval.num_reference or len(images)
    order = np.random.default_rng(0).permutation(len(images))[:number]
    if len(order) < FEWEST:
        raise UserError(
            f"config.data.name: {info.name} has {len(order)} training images; allowed are {FEWEST} "
            "or more"
        )
    images = eight_bits(images[np.sort(order)], info.levels or 256)
    return Side(images, None, {"set": info.name, "split": "train", "n": len(images)})


def _info(config: ConfigDict, workdir: Path) -> DatasetInfo:
    """What is known of the run's data, which must be images."""
    info = info_of(config, workdirs.load_info(workdir))
    if info.levels is None:
        raise UserError(f"config.data.name = {config.data.name!r}: allowed are sets of images")
    return info


def _side(path: Path) -> Side:
    """Images or statistics that a user names.

    Raises:
        UserError: one line: anything else.
    """
    about = {"path": str(path)}
    if path.is_dir():
        return _of_images(folder.of_one_size(path), about)
    try:
        with np.load(path, allow_pickle=False) as file:
            if "mu" in file.files:
                found = evaluation.read_statistics(path)
                return Side(None, found, {**about, "n": found.n, **found.about})
            name = next(name for name in ("images", "arr_0") if name in file.files)
            images, levels = file[name], _levels(file)
    except (*UNREADABLE, StopIteration) as error:
        raise UserError(
            f"{path}: allowed are a folder of images, .npz of images, or of mu and sigma"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{path}: {name} is {images.dtype}{images.shape}; allowed is uint8 (N, H, W, 3)"
        )
    if images.size and images.max() >= levels:
        raise UserError(f"{path}: {name} has {images.max()}; allowed are 0 to {levels - 1}")
    return _of_images(eight_bits(images, levels), about)


def _check(found: Statistics, made: dict[str, Any], path: Path) -> None:
    """Refuse statistics of other features than ours."""
    evaluation.check_same(made, found.about, str(path))
    if len(found.mu) != FEATURES:
        raise UserError(f"{path}: of {len(found.mu)} features; allowed are {FEATURES}, Inception's")


def _of_images(images: np.ndarray, about: dict[str, Any]) -> Side:
    if len(images) < FEWEST:
        raise UserError(f"{about['path']}: {len(images)} images; allowed are {FEWEST} or more")
    return Side(images, None, about | {"n": len(images)})


def _levels(file: Any) -> int:
    """Levels of the images in a file of `--mode sample`; older versions said it in words only."""
    if "levels" in file:
        return int(file["levels"])
    said = re.match(r"images x 255/(\d+)", str(file["arr_0_is"])) if "arr_0_is" in file else None
    return int(said[1]) + 1 if said else 256


# --- What is computed -----------------------------------------------------------------------------


def _features(
    function: evaluation.FeatureFn,
    images: np.ndarray,
    path: Path,
    made: dict[str, Any],
    batch_size: int,
    beside: tuple[str, ...] = (),
) -> np.ndarray:
    """Features float32 (N, F). Those that the file has are not computed again."""
    table = Table(path, {**made, "images": digest([images])}, beside=beside)
    table.report(len(images))
    with (
        progress(len(images), len(table), "image", path.stem) as bar,
        saving(lambda: table.changed, lambda: table.save(len(images))) as saved,
    ):
        for begin in range(len(table), len(images), CHUNK * batch_size):
            chunk = images[begin : begin + CHUNK * batch_size]
            found = evaluation.features(function, chunk, batch_size, lambda n: bar.done(n))
            table.add({"features": found})
            saved()
    return table.rows["features"]


def _figures(x: np.ndarray, y: np.ndarray | None, reference: Statistics | None) -> dict[str, Any]:
    """The figures of the samples' features x, by those of the reference or by its statistics."""
    if reference is None:
        assert y is not None
        reference = evaluation.statistics([y])
    several = evaluation.fid_infinity(x, reference)
    found: dict[str, Any] = {
        fid_name(len(x)): evaluation.frechet_distance(reference, evaluation.statistics([x])),
        "FID_at_sizes": dict(zip(several.sizes, several.values, strict=True)),
        "FID_infinity": several.infinity._asdict(),
    }
    if y is not None:
        found["KID"] = evaluation.kid(x, y)._asdict()
        n = min(len(x), len(y))  # precision and its kin are of equal numbers
        rng = np.random.default_rng(0)
        x, y = (each[rng.permutation(len(each))[:n]] for each in (x, y))
        found |= evaluation.manifolds(x, y)._asdict() | {"of_each_side": n}
    return found


def fid_name(n: int) -> str:
    """`FID` for 50,000 samples or more; otherwise with their number, such as `FID-5k`."""
    if n >= FULL:
        return "FID"
    return f"FID-{n // 1000}k" if n % 1000 == 0 else f"FID-{n}"


def _show_nearest(samples: np.ndarray, reference: np.ndarray, path: Path) -> None:
    """A row for each of some samples: the sample, and the nearest of the reference by pixels."""
    shown = samples[:SHOWN]
    indices, _ = evaluation.nearest(shown, reference, k=min(NEAREST, len(reference)))
    rows = np.concatenate([shown[:, None], reference[indices]], axis=1)
    pictures.save_png(path, rows.reshape(-1, *rows.shape[2:]), 256, columns=rows.shape[1])
