"""`--mode sample`: draw images from a trained run. Never touches the data set."""

import time
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import build
from score_sde.batches import Images
from score_sde.modes import pictures, start, tell_unread
from score_sde.modes.files import digest, signals_wait, whole
from score_sde.run import Run, load

VALUES, PICTURE, FILM = "samples.npz", "samples.png", "samples.gif"
READ = {"method", "seed", "num_samples", "batch_size", "gif"}  # beside what the sampler reads
GIF_IMAGES = 16
GRID_IMAGES = 400  # more of them would make a picture that no viewer shows
SAVE_EVERY = 60.0  # seconds


def run(config: ConfigDict, workdir: Path) -> None:
    """Write `samples.png`, `samples.npz` and, where `sampling.gif` asks for it, `samples.gif`.

    The batches drawn are saved every minute, and with an interruption. The same command then goes
    on after them, but for one with a film, which begins anew.
    """
    settings = config.sampling
    start(min(settings.num_samples, settings.batch_size))
    trained = load(workdir, config)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"sampler: {build.sampler(config)}")
    tell_unread(config, workdir, {f"sampling.{key}" for key in build.keys_read(config) | READ})
    key, number = jax.random.key(settings.seed), settings.num_samples
    depends = _what_the_images_depend_on(trained)
    parts = [] if settings.gif else _unfinished(workdir, depends, number)
    done = sum(len(part.images) for part in parts)
    film = _Film(workdir / FILM, build.pixel_range(config).levels) if settings.gif else None
    batches = trained.sample_batches(
        key, number, trajectory=pictures.FRAMES if film else False, first=done
    )
    ends = [time.perf_counter()]  # of the batches; the first is the begin
    due = ends[0] + SAVE_EVERY
    try:
        with tqdm(total=number, initial=done, unit="image", desc="sample") as bar:
            for part in batches:
                parts.append(part._replace(trajectory=None))
                if film:
                    film.add(part)
                bar.update(len(part.images))
                ends.append(time.perf_counter())
                if ends[-1] > due:
                    _write(trained, parts, workdir, depends)
                    now = time.perf_counter()  # saving takes a tenth of the time at most
                    due = now + max(SAVE_EVERY, 10.0 * (now - ends[-1]))
    finally:
        if len(parts) > bool(done):  # something new
            _write(trained, parts, workdir, depends)
        there = sum(len(part.images) for part in parts)
        if done < there < number:
            then = "; the same command goes on" if film is None else ""
            print(f"{workdir / VALUES}: {there} of {number} images{then}")
    nfe = np.concatenate([part.nfe for part in parts])
    drawn = [len(part.images) for part in parts[bool(done) :]]
    print(f"{number} images, NFE {nfe.mean():.0f}, {_speed(drawn, ends)}")
    if film:
        print(f"film: {workdir / FILM}")
    elif (workdir / FILM).exists():
        print(f"{workdir / FILM}: the film of an earlier command")
    print(f"picture: {workdir / PICTURE}")


def _speed(drawn: list[int], ends: list[float]) -> str:
    """Images/s in words, from the sizes of the batches and when they began and ended."""
    told = f"{sum(drawn) / (ends[-1] - ends[0]):.2f} images/s with compilation"
    if len(drawn) > 1:
        told += f", {sum(drawn[1:]) / (ends[-1] - ends[1]):.2f} images/s after the first batch"
    return told


class _Film:
    """The film of the first images, which is written as soon as they are drawn."""

    def __init__(self, path: Path, levels: int) -> None:
        self.path, self.levels, self.missing = path, levels, GIF_IMAGES
        self.states: list[np.ndarray] = []

    def add(self, part: Images) -> None:
        """Take the states of a batch."""
        assert part.trajectory is not None
        if self.missing > 0:
            states = np.concatenate([part.trajectory, part.images[None]])
            self.states.append(states[:, : self.missing])
            self.missing -= states.shape[1]
            pictures.save_gif(self.path, np.concatenate(self.states, axis=1), self.levels)


# --- What is kept ---------------------------------------------------------------------------------


def _what_the_images_depend_on(trained: Run) -> dict[str, Any]:
    config = trained.config
    sampler = build.sampler(config)
    depends = {
        "sampler": str(sampler),
        "seed": config.sampling.seed,
        "step": trained.step,
        "weights": digest(jax.tree.leaves(trained.score)),
    }
    if sampler.coupled:  # then an image depends on those drawn with it
        depends["batch_size"] = trained.batch(config.sampling.num_samples)
    return depends


def _unfinished(workdir: Path, depends: dict[str, Any], number: int) -> list[Images]:
    """Return what an interrupted command left of fewer images than asked for, which is told."""
    try:
        with np.load(workdir / VALUES) as arrays:
            same = all(name in arrays and arrays[name] == depends[name] for name in depends)
            drawn = len(arrays["images"])
            if not same and not arrays["complete"]:
                print(f"{workdir / VALUES}: {drawn} unfinished images of other settings, replaced")
            if not same or arrays["complete"] or not 0 < drawn < number:
                return []
            left = Images(arrays["images"], arrays["nfe"], arrays.get("labels"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error):
        return []  # none, or not as this version writes them: they are drawn anew
    print(f"{workdir / VALUES}: {drawn} images of these settings; going on after them")
    return [left]


def _write(trained: Run, parts: list[Images], workdir: Path, depends: dict[str, Any]) -> None:
    images = np.concatenate([part.images for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    arrays: dict[str, Any] = {"labels": np.concatenate(labels)} if labels else {}
    levels = build.pixel_range(trained.config).levels
    with signals_wait():
        with whole(workdir / VALUES) as file:
            np.savez_compressed(
                file,
                **arrays,
                **depends,
                images=images,
                nfe=np.concatenate([part.nfe for part in parts]),
                complete=len(images) >= trained.config.sampling.num_samples,
            )
        pictures.save_png(workdir / PICTURE, images[:GRID_IMAGES], levels)
