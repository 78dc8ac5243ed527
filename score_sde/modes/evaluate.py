"""`--mode evaluate`: figures of sample quality, with everything that they depend on."""

import hashlib
import json
import platform
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde import __version__, build, evaluation, pictures, scoring, workdirs
from score_sde.config import changed
from score_sde.data import folder
from score_sde.data.info import DatasetInfo
from score_sde.display import eight_bits
from score_sde.errors import UserError
from score_sde.evaluation import Rows, Statistics
from score_sde.evaluation.rows import ABOUT, chunk_of, of_npz, read_stored
from score_sde.locks import writing
from score_sde.modes import likelihood, sample, start
from score_sde.modes.levels import loss_by_level
from score_sde.modes.results import move_aside
from score_sde.paths import whole
from score_sde.run import info_of

SUMMARY, NEIGHBOURS = "evaluation.json", "nearest.png"
FEWEST = 20  # images of a side
SHOWN, NEAREST = 10, 5
UNREADABLE = (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error)  # of np.load


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
    other images. The reference is the training split unless `reference` names images, features or
    statistics. The features of both are kept in `features`, so the same command continues after an
    interruption.
    """
    ours = _side(Path(samples)) if samples else None
    if ours and ours.statistics:
        raise UserError(f"--samples = '{samples}': statistics; allowed are images")
    start(min(config.eval.num_samples, config.sampling.batch_size))
    judge = Judge.of(config, workdir, output, reference)
    if ours is None:
        ours = drawn(config, workdir, output, step)
    facts = judge.score(ours, output)
    if not samples:  # what the model says of data, whatever is drawn from it
        if levels := loss_by_level(config, workdir, step):
            facts["loss_by_level"] = levels
            write(output, facts)
        if config.eval.likelihood:
            with writing(output, "likelihoods"):
                facts["likelihood"] = likelihood.compute(config, workdir, output, step)
            write(output, facts)
    print(json.dumps(facts["figures"], indent=2))
    print(f"result: {output / SUMMARY}")


class Judge(NamedTuple):
    """What samples are compared with.

    Attributes:
        config: of the run.
        folder: where features are kept.
        extractor: what makes them.
        reference: the other side, with features or statistics.
        statistics: of it.
    """

    config: ConfigDict
    folder: Path
    extractor: scoring.Extractor
    reference: Side
    statistics: Statistics

    @staticmethod
    def of(config: ConfigDict, workdir: Path, output: Path, reference: Path | str) -> "Judge":
        """The judge by a config's settings: the reference's features are computed."""
        given = _side(Path(reference)) if reference else None
        home = workdir if (workdir / scoring.CLASSIFIER).exists() else output
        made_by = scoring.extractor(config, _info(config, workdir), home)
        side = given or _training_split(config, workdir)
        folder, where = output / scoring.FOLDER, f"{reference}"
        side = _with_features(config, made_by, side, folder, where)
        found = side.statistics
        if found is None:
            assert side.features is not None
            found = scoring.statistics(made_by, side.features, side.about)
        return Judge(config, folder, made_by, side, found)

    def score(self, ours: Side, output: Path) -> dict[str, Any]:
        """Write and return the figures of samples, with everything that they depend on; write
        `nearest.png`."""
        made_by, theirs = self.extractor, self.reference
        where = ours.about.get("path", "")
        ours = _with_features(self.config, made_by, ours, self.folder, where)
        assert ours.features is not None
        figures = self._figures(ours.features)
        facts = {
            "figures": figures,
            "samples": ours.about,
            "reference": theirs.about,
            "statistics": _digest(self.statistics),
            **made_by.about,
            **made_by.facts,
            **_circumstances(self.config),
        }
        _keep_other(output, facts)
        if ours.images and theirs.images and ours.images.shape[1:] == theirs.images.shape[1:]:
            most = self.config.eval.num_manifold
            fake, real = (side.some(most) for side in (ours.images, theirs.images))
            figures["sliced_wasserstein"] = evaluation.sliced_wasserstein(fake, real)
            _show_nearest(ours.images, theirs.images, output / NEIGHBOURS)
        write(output, facts)
        return facts

    def _figures(self, x: Rows) -> dict[str, Any]:
        """The figures of the samples' features."""
        name, reference = self.extractor.named, self.statistics
        several = evaluation.fid_infinity(x, reference)
        distance = evaluation.frechet_distance(reference, evaluation.statistics(x))
        found: dict[str, Any] = {
            self.extractor.distance_of(len(x)): distance,
            name("FID_at_sizes"): dict(zip(several.sizes, several.values, strict=True)),
            name("FID_infinity"): several.infinity._asdict(),
        }
        if self.reference.features:
            most = self.config.eval.num_manifold
            fake, real = (each.some(most) for each in (x, self.reference.features))
            found[name("KID")] = evaluation.kid(fake, real)._asdict()
            n = min(len(fake), len(real))  # precision and its kin are of equal numbers
            rng = np.random.default_rng(0)
            fake, real = (each[rng.permutation(len(each))[:n]] for each in (fake, real))
            found |= evaluation.manifolds(fake, real)._asdict() | {"of_each_side": n}
        return found


def _with_features(
    config: ConfigDict, made_by: scoring.Extractor, side: Side, folder: Path, where: str
) -> Side:
    """The side with its features; those that were given must be of the same kind as ours."""
    if side.images:
        settings = folder, config.eval.batch_size, side.about
        return side._replace(features=scoring.features(made_by, side.images, *settings))
    evaluation.check_same(made_by.about, side.about, where)
    if side.features:
        size = side.features.shape[1]
    else:
        assert side.statistics is not None
        size = len(side.statistics.mu)
    if size != made_by.size:
        kind = made_by.about["features"]
        raise UserError(f"{where}: of {size} features; allowed are {made_by.size}, those of {kind}")
    return side


def write(output: Path, facts: dict[str, Any]) -> None:
    """Write `evaluation.json`."""
    with whole(output / SUMMARY) as file:
        file.write(f"{json.dumps(facts, indent=2)}\n".encode())


def read(output: Path) -> dict[str, Any]:
    """What `evaluation.json` says; {} where there is none that can be read."""
    try:
        found = json.loads((output / SUMMARY).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep_other(output: Path, facts: dict[str, Any]) -> None:
    """Move an evaluation of other images or features out of the way, and report it."""
    there, here = read(output), json.loads(json.dumps(facts))
    same = ("samples", "reference", "features", "weights", "resize")
    if any(there.get(key) != here[key] for key in same):
        for old, new in move_aside([output / SUMMARY, output / NEIGHBOURS]).items():
            print(f"{output / old}: of another evaluation; it is now {new}")


def _digest(found: Statistics) -> str:
    """SHA-256 of mean and covariance."""
    return hashlib.sha256(found.mu.tobytes() + found.sigma.tobytes()).hexdigest()


def _circumstances(config: ConfigDict) -> dict[str, Any]:
    versions = {
        "score_sde": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return {
        "rounding": "samples are rounded to uint8",
        "precision": "features float32 at full precision, distances float64",
        "network_precision": config.model.dtype,
        "seed_of_subsets": 0,
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "command": sys.argv,
    }


# --- The two sides --------------------------------------------------------------------------------


def drawn(config: ConfigDict, workdir: Path, output: Path, step: int | None) -> Side:
    """Samples of the run, drawn where they are missing."""
    number = config.eval.num_samples
    wanted = changed(config, {"sampling.num_samples": number, "sampling.gif": False})
    with writing(output, "samples"):
        sample.draw(wanted, workdir, output, step)
    path = output / sample.VALUES
    with path.open("rb") as opened, np.load(opened) as file:
        about = {key: file[key].item() for key in ("seed", "sampler", "step")}
        about |= {"n": number, "nfe": float(file["nfe"][:number].mean()), "averages": "ema"}
        about["weights"] = json.loads(str(file["depends"]))["weights"]
        levels = _levels(file)
    images = of_npz(path, "images")
    first = Rows((number, *images.shape[1:]), lambda: images.at(np.arange(number)))
    return Side(about, _in_eight_bits(first, levels, str(path)))


def _training_split(config: ConfigDict, workdir: Path) -> Side:
    info = _info(config, workdir)
    images = scoring.training_split(config, info, build.arrays(config, info, "train").x)
    if len(images) < FEWEST:
        raise UserError(
            f"config.data.name: {info.name} has {len(images)} training images; allowed are "
            f"{FEWEST} or more"
        )
    return Side({"set": info.name, "split": "train", "n": len(images)}, images)


def _info(config: ConfigDict, workdir: Path) -> DatasetInfo:
    """What is known of the run's data, which must be images."""
    info = info_of(config, workdirs.load_info(workdir))
    if info.levels is None:
        raise UserError(f"config.data.name = {config.data.name!r}: allowed are sets of images")
    return info


def _side(path: Path) -> Side:
    """Images, features or statistics that a user names.

    Raises:
        UserError: one line: anything else.
    """
    about: dict[str, Any] = {"path": str(path)}
    if path.is_dir() and (path / ABOUT).is_file():
        found, said = read_stored(path)
        return Side(about | said, features=found)
    if path.is_dir():
        shape, read = folder.of_one_size(path)
        return _of_images(Rows(shape, lambda: read(chunk_of(shape))), about)
    try:
        with np.load(path, allow_pickle=False) as file:
            if "mu" in file.files:
                known = evaluation.read_statistics(path)
                return Side({**about, "n": known.n, **known.about}, statistics=known)
            name = next(name for name in ("images", "arr_0") if name in file.files)
            levels = _levels(file)
        images = of_npz(path, name)
        dtype = next(iter(images)).dtype if len(images) else np.dtype(np.uint8)
    except (*UNREADABLE, LookupError, StopIteration) as error:
        raise UserError(
            f"{path}: allowed are a folder of images, .npz of images, or of mu and sigma"
        ) from error
    if dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{path}: {name} is {dtype}{images.shape}; allowed is uint8 (N, H, W, 3)")
    return _of_images(_in_eight_bits(images, levels, f"{path}: {name}"), about)


def _in_eight_bits(images: Rows, levels: int, where: str) -> Rows:
    """Images of 0 to levels - 1 as those of 0 to 255; reading others raises UserError."""

    def read() -> Iterator[np.ndarray]:
        for chunk in images:
            if chunk.max() >= levels:
                raise UserError(f"{where} has {chunk.max()}; allowed are 0 to {levels - 1}")
            yield eight_bits(chunk, levels)

    return Rows(images.shape, read)


def _of_images(images: Rows, about: dict[str, Any]) -> Side:
    if len(images) < FEWEST:
        raise UserError(f"{about['path']}: {len(images)} images; allowed are {FEWEST} or more")
    return Side(about | {"n": len(images)}, images)


def _levels(file: Any) -> int:
    """Levels of the images in a file of `--mode sample`; older versions said it in words only."""
    if "levels" in file:
        return int(file["levels"])
    said = re.match(r"images x 255/(\d+)", str(file["arr_0_is"])) if "arr_0_is" in file else None
    return int(said[1]) + 1 if said else 256


def _show_nearest(samples: Rows, reference: Rows, path: Path) -> None:
    """A row for each of some samples: the sample, and the nearest of the reference by pixels."""
    shown = next(iter(samples))[:SHOWN]
    images = np.zeros((len(shown), 0, *shown.shape[1:]), np.uint8)
    distances = np.zeros((len(shown), 0), np.float32)
    for chunk in reference:
        indices, found = evaluation.nearest(shown, chunk, k=min(NEAREST, len(chunk)))
        images = np.concatenate([images, chunk[indices]], axis=1)
        distances = np.concatenate([distances, found], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :NEAREST]
        distances = np.take_along_axis(distances, order, axis=1)
        images = np.take_along_axis(images, order[:, :, None, None, None], axis=1)
    rows = np.concatenate([shown[:, None], images], axis=1)
    pictures.save_png(path, rows.reshape(-1, *rows.shape[2:]), 256, columns=rows.shape[1])
