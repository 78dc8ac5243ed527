"""`--mode sample`: draw from a trained run. Only pictures of vectors look for the data."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import __version__, build, pictures
from score_sde.batches import Drawn
from score_sde.config import changed, refuse
from score_sde.errors import UserError
from score_sde.likelihood import DataLikelihood
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest, signals_wait
from score_sde.modes.results import Progress, Table, progress, saving
from score_sde.run import Run, load

VALUES, PICTURE, FILM, IMAGES = "samples.npz", "samples.png", "samples.gif", "samples_png"
# Beside what the sampler reads.
READ = {"method", "seed", "num_samples", "batch_size", "gif", "png", "condition"}
# Settings that files of earlier versions lack, and the values that those were drawn with.
GUIDED = {"labels": (), "guidance": 1.0, "guidance_interval": (), "classifier_scale": 0.0}
# What contours need.
DENSITY = {f"likelihood.{key}" for key in ("rtol", "atol", "t_min", "max_steps")}
GIF_IMAGES = 16
# More of them, or of their pixels, would make a picture that no viewer shows.
GRID_IMAGES, GRID_PIXELS = 400, 2**26


def run(config: ConfigDict, workdir: Path, output: Path, step: int | None) -> None:
    """Write into the output `samples.npz`, a picture, and what is asked for by `sampling.gif`
    (`samples.gif`) and `sampling.png` (`samples_png/000000.png` and so on, of 0 to 255).

    The batches drawn are saved every minute, and at an interruption. The same command then
    continues after them; one that lacks its film starts again. Samples of other settings are kept
    as `samples.old.npz`.
    """
    start(min(config.sampling.num_samples, config.sampling.batch_size))
    trained = load(workdir, config, step=step)
    keys = build.keys_read(config) | READ | build.guidance_keys(config)
    read = {f"sampling.{key}" for key in keys} | (DENSITY if _has_contours(trained) else set())
    tell_unread(config, workdir, read)
    draw(trained, workdir, output)


def _has_contours(trained: Run) -> bool:
    """Whether the picture has contours of the density: for vectors in the plane, all of one
    condition."""
    return trained.info.shape == (2,) and not build.has_classes(trained.config)


def draw(trained: Run, workdir: Path, output: Path) -> None:
    """As `run`, of a run that is loaded from the workdir."""
    config = trained.config
    settings, number = config.sampling, config.sampling.num_samples
    for key in ("gif", "png"):
        if settings[key] and trained.info.levels is None:
            raise refuse(f"sampling.{key}", True, "False with vectors")
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"sampler: {build.sampler(config)}")
    given = _condition(trained, number)
    contours, picture = _has_contours(trained), output / PICTURE
    unit, name = ("image", "images") if trained.info.levels else ("vector", "x")
    table = _table(trained, output / VALUES)
    there = pictures.images_in_gif(output / FILM) if table.other is None else 0
    film = None
    if settings.gif and there < min(number, GIF_IMAGES):
        film = _Film(output / FILM, trained.info.levels or 0, number)
        table.rows = {}  # it is of states that are not kept
    table.report()

    def save() -> None:
        with signals_wait():
            table.save()
            if contours and len(table) >= number:
                picture.unlink(missing_ok=True)  # the contours follow, and take their time
            else:
                _picture(trained, table.rows, picture)

    bar = _draw(trained, given, table, film, save)
    if not picture.exists():
        if contours:
            print("contours: solving for the density in the plane")
        density = _density(trained, given, table.facts) if contours else None
        _picture(trained, table.rows, picture, density)
        if contours:
            table.save()  # with the density, for the report
    if settings.png:
        pictures.save_each(output / IMAGES, table.rows[name], trained.info.levels or 0)
    nfe = table.rows["nfe"][:number].mean()
    speed = f", {bar.speed(f'{unit}s')}" if bar.drawn else ""
    print(f"{number} {unit}s, NFE {nfe:.0f}{speed}")
    if settings.gif:
        print(
            f"film: {output / FILM}{'' if film else f', the one of {there} images that was there'}"
        )
    elif (output / FILM).exists():
        print(f"{output / FILM}: the film of an earlier command")
    if settings.png:
        print(f"images of 0 to 255: {output / IMAGES}")
    print(f"picture: {picture}")


def _table(trained: Run, path: Path) -> Table:
    """The table of the samples, with those that are there."""
    facts, levels, large = _facts(trained), trained.info.levels, dict[str, Any]()
    if levels:
        # Suites of evaluation look for images in `arr_0`. Two copies would double the file.
        said = "images" if levels == 256 else f"images x 255/{levels - 1}, rounded"
        facts |= {"arr_0_is": said, "levels": levels}
        large = {"images": (trained.info.shape, np.uint8)}
    number, beside = trained.config.sampling.num_samples, (PICTURE, FILM, IMAGES)
    depends = _depends(trained)
    return Table(path, depends, number, facts=facts, beside=beside, usual=GUIDED, large=large)


def _draw(
    trained: Run,
    given: dict[str, Any],
    table: Table,
    film: "_Film | None",
    save: Callable[[], None],
) -> Progress:
    """Draw the samples that the table lacks."""
    settings, number = trained.config.sampling, trained.config.sampling.num_samples
    unit, name = ("image", "images") if trained.info.levels else ("vector", "x")
    with (
        progress(number, len(table), unit, "sample") as bar,
        saving(lambda: table.changed, save) as saved,
    ):
        for part in trained.sample_batches(
            jax.random.key(settings.seed),
            number,
            given,
            trajectory=pictures.FRAMES if film else False,
            first=len(table),
            progress=bar.inside,
        ):
            table.add({name: part.x, "nfe": part.nfe, **part.condition})
            if film:
                table.set_aside()  # with the film that is there
                film.add(part)
            bar.done(len(part.nfe))
            saved()
    return bar


class _Film:
    """The film of the first images, which is written as soon as all of them are drawn."""

    def __init__(self, path: Path, levels: int, number: int) -> None:
        self.path, self.levels, self.missing = path, levels, min(number, GIF_IMAGES)
        self.states: list[np.ndarray] = []

    def add(self, part: Drawn) -> None:
        """Take the states of a batch."""
        if self.missing > 0:
            states = np.swapaxes(np.asarray(part.trajectory), 0, 1)
            states = np.concatenate([states, np.asarray(part.x)[None]])
            self.states.append(states[:, : self.missing])
            self.missing -= states.shape[1]
            if self.missing <= 0:  # an earlier film is not replaced by a part of one
                pictures.save_gif(self.path, np.concatenate(self.states, axis=1), self.levels)


def _condition(trained: Run, number: int) -> dict[str, np.ndarray]:
    """What the samples are drawn for: the classes in turn, and `sampling.condition`, one for all.

    Raises:
        UserError: another number of values than there are condition columns, or a value that is
            not finite in float32.
    """
    info, values = trained.info, trained.config.sampling.condition
    given = build.classes_in_turn(trained.config, info, number, drawn=True)
    if len(values) != len(info.condition):
        columns = ", ".join(info.condition)
        allowed = f"a number for each of {columns}" if columns else "(), as there is no condition"
        raise refuse("sampling.condition", values, allowed)
    if values:
        with np.errstate(over="ignore"):
            row = info.standardised([values])
        if not np.isfinite(row).all():
            raise refuse("sampling.condition", values, "numbers that float32 holds, standardised")
        given["vector"] = np.repeat(row, number, axis=0)
    return given


def _facts(trained: Run) -> dict[str, Any]:
    settings, sampler = trained.config.sampling, build.sampler(trained.config)
    facts = {"seed": settings.seed, "sampler": str(sampler), "step": trained.step}
    if sampler.coupled:  # then an item depends on those drawn with it
        facts["batch_size"] = trained.batch_size(settings.num_samples)
    return facts


def _depends(trained: Run) -> dict[str, Any]:
    settings, facts = trained.config.sampling, _facts(trained)
    if "batch_size" in facts:  # the last batch may be filled up
        facts["num_samples"] = settings.num_samples
    return facts | {
        **{key: settings[key] for key in GUIDED},
        "version": __version__,
        "condition": settings.condition,
        "weights": digest(jax.tree.leaves((trained.score, trained.classifier))),
    }


def _picture(
    trained: Run,
    rows: Mapping[str, np.ndarray],
    path: Path,
    density: Callable[[np.ndarray], np.ndarray | None] | None = None,
) -> None:
    """Write a grid of images, with a row for each class where there are classes; or vectors beside
    the data, with contours of the density if given.

    Data that cannot be read, and a density that cannot be solved for, are reported and left out.
    """
    info = trained.info
    if info.levels:
        most = max(1, min(GRID_IMAGES, GRID_PIXELS // math.prod(info.shape[:2])))
        images, columns = rows["images"][:most], None
        if "labels" in rows:
            images, columns = _by_class(images, rows["labels"][:most])
        pictures.save_png(path, images, info.levels, columns)
        return
    real = None
    try:
        real = build.arrays(trained.config, info, "test").x
    except UserError as error:
        tqdm.write(f"the picture is without the data: {error}")
    pictures.save_scatter(path, rows["x"], real, info.columns, density)


def _by_class(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """The images ordered by class, as many of each as there are of all, and that number."""
    classes, counts = np.unique(labels, return_counts=True)
    number = int(counts.min())
    chosen = [np.flatnonzero(labels == label)[:number] for label in classes]
    return images[np.concatenate(chosen)], number


def _density(
    trained: Run, given: dict[str, np.ndarray], kept: dict[str, Any]
) -> Callable[[np.ndarray], np.ndarray | None]:
    """The learned log density of points in the plane, given the one condition of the samples. What
    is asked and answered is kept."""
    settings = {"likelihood.divergence": "exact", "likelihood.batch_size": 4096}
    settings |= {"likelihood.method": "ode"}
    # A density of points, also where the data have bins.
    info = dataclasses.replace(trained.info, bin_width=None)
    exact = dataclasses.replace(trained, config=changed(trained.config, settings), info=info)

    def density(points: np.ndarray) -> np.ndarray | None:
        condition = {name: np.repeat(a[:1], len(points), axis=0) for name, a in given.items()}
        try:
            found = exact.log_likelihood(jax.random.key(0), points, **condition)
        except UserError as error:
            tqdm.write(f"the picture is without the density: {error}")
            return None
        assert isinstance(found, DataLikelihood)  # as the method says
        values = np.asarray(found.log_weight[:, 0])
        side = math.isqrt(len(points))  # of an even grid; a data set has no arrays of three axes
        kept["density"] = np.column_stack([points, values]).reshape(side, side, 3)
        return values

    return density
