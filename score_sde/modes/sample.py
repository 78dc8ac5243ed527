"""`--mode sample`: draw images from a trained run. Never touches the data set."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import build, workdirs
from score_sde.config import SAMPLER_KEYS
from score_sde.modes import pictures, start
from score_sde.run import Images, Run, load

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
    unread = _unread(config, workdirs.load(workdir))
    if unread:
        print(f"not read by config.sampling.method = {settings.method!r}: {', '.join(unread)}")
    key, number = jax.random.key(settings.seed), settings.num_samples
    parts: list[Images] = []
    began = time.perf_counter()
    try:
        with tqdm(total=number, unit="image", desc="sample") as bar:
            for part in trained.sample_batches(key, number):
                parts.append(part)
                bar.update(len(part.images))
    finally:
        if parts:
            _write(trained, parts, workdir)
    seconds = time.perf_counter() - began
    nfe = np.concatenate([part.nfe for part in parts])
    print(
        f"{number} images, NFE {nfe.mean():.0f}, {number / seconds:.2f} images/s with compilation"
    )
    if settings.gif:
        path = trained.sample(key, min(number, GIF_IMAGES), trajectory=True)
        assert path.trajectory is not None
        film = np.concatenate([path.trajectory, path.images[None]])
        pictures.save_gif(workdir / "samples.gif", film, build.pixel_range(config).levels)
        print(f"film: {workdir / 'samples.gif'}")
    print(f"picture: {workdir / 'samples.png'}")


def _unread(config: ConfigDict, saved: ConfigDict) -> list[str]:
    """Return the settings that were changed without effect: those of other samplers."""
    others = {key for keys in SAMPLER_KEYS.values() for key in keys}
    others -= set(SAMPLER_KEYS[config.sampling.method])
    changed = [key for key in sorted(others) if config.sampling[key] != saved.sampling[key]]
    return [f"config.sampling.{key}" for key in changed]


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
