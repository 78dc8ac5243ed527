"""`--mode sample`: draw images from a trained run. Never touches the data set."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import build
from score_sde.config import keys_read
from score_sde.modes import pictures, start, tell_unread
from score_sde.run import Images, Run, load

READ = {"method", "seed", "num_samples", "batch_size", "gif"}  # beside what the sampler reads
GIF_IMAGES = 16
GRID_IMAGES = 400  # more of them would make a picture that no viewer shows


def run(config: ConfigDict, workdir: Path) -> None:
    """Write `samples.png`, `samples.npz` and, where `sampling.gif` asks for it, `samples.gif`.

    An interruption leaves the whole batches drawn by then in `samples.npz`.
    """
    settings = config.sampling
    start(min(settings.num_samples, settings.batch_size))
    trained = load(workdir, config)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    print(f"sampler: {build.sampler(config)}")
    tell_unread(config, workdir, {f"sampling.{key}" for key in keys_read(settings) | READ})
    key, number = jax.random.key(settings.seed), settings.num_samples
    # The film is of the first of the very images that are drawn.
    trajectory = pictures.FRAMES if settings.gif else False
    parts: list[Images] = []
    film = None
    began = compiled = time.perf_counter()
    try:
        with tqdm(total=number, unit="image", desc="sample") as bar:
            for part in trained.sample_batches(key, number, trajectory=trajectory):
                if part.trajectory is not None and film is None:
                    states = np.concatenate([part.trajectory, part.images[None]])
                    film = states[:, :GIF_IMAGES]
                parts.append(part._replace(trajectory=None))
                bar.update(len(part.images))
                if len(parts) == 1:
                    compiled = time.perf_counter()
    finally:
        if parts:
            _write(trained, parts, workdir)
    _tell_speed(parts, compiled - began, time.perf_counter() - compiled)
    if film is not None:
        pictures.save_gif(workdir / "samples.gif", film, build.pixel_range(config).levels)
        print(f"film: {workdir / 'samples.gif'}")
    print(f"picture: {workdir / 'samples.png'}")


def _tell_speed(parts: list[Images], first: float, rest: float) -> None:
    """Print evaluations and images/s, from the seconds of the first batch and of all others."""
    nfe = np.concatenate([part.nfe for part in parts])
    speed = f"{len(nfe) / (first + rest):.2f} images/s with compilation"
    if len(parts) > 1:
        speed += f", {(len(nfe) - len(parts[0].nfe)) / rest:.2f} images/s after the first batch"
    print(f"{len(nfe)} images, NFE {nfe.mean():.0f}, {speed}")


def _write(trained: Run, parts: list[Images], workdir: Path) -> None:
    config = trained.config
    images = np.concatenate([part.images for part in parts])
    arrays: dict[str, Any] = {
        "images": images,
        "nfe": np.concatenate([part.nfe for part in parts]),
        "sampler": str(build.sampler(config)),
        "seed": config.sampling.seed,
        "step": trained.step,
    }
    if build.sampler(config).coupled:  # then an image depends on those drawn with it
        arrays["batch_size"] = trained.batch(config.sampling.num_samples)
    labels = [part.labels for part in parts if part.labels is not None]
    if labels:
        arrays["labels"] = np.concatenate(labels)
    np.savez_compressed(workdir / "samples.npz", **arrays)
    levels = build.pixel_range(config).levels
    pictures.save_png(workdir / "samples.png", images[:GRID_IMAGES], levels)
